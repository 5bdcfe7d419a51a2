"""Four captioned images walk from files to pictures: learned by heart, drawn when asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_autoencoder, tiny_backbone, tiny_conditioner

from rectiflow.data.encode import encode_folder
from rectiflow.data.latent_store import LatentStore
from rectiflow.generation import frozen_parts
from rectiflow.generation.model import load_model
from rectiflow.generation.noise import initial_noise
from rectiflow.generation.text_to_image import (
    draw_latents,
    encode_prompts,
    generate,
)
from rectiflow.sampling import SamplingDefaults
from rectiflow.shapeworld.folder import write_folder
from rectiflow.shapeworld.world import SMALL
from rectiflow.training.ema import EmaConfig
from rectiflow.training.loop import train
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid

NUM_SAMPLES = 4


@pytest.mark.system
def test_what_was_learned_by_heart_is_drawn_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_parts, "load_autoencoder", tiny_autoencoder)
    monkeypatch.setattr(frozen_parts, "load_prompt_encoder", tiny_conditioner)
    write_folder(SMALL, tmp_path / "pictures", count=NUM_SAMPLES, seed=2)
    encode_folder(
        tmp_path / "pictures",
        tmp_path / "store",
        tiny_autoencoder(),
        tiny_conditioner(),
        resolution_px=64,
    )
    recipe = TrainRecipe(
        name="by-heart",
        backbone=replace(tiny_backbone().config, depth=2),
        batch_size=NUM_SAMPLES,
        max_steps=250,
        optimizer=AdamW(learning_rate=3e-3),
        schedule=Trapezoid(warmup_steps=10, decay_fraction=0.5),
        ema=EmaConfig(decay=0.9),
        encoder_dropout=0.0,
        caption_mix={"full": 1.0},
        num_validation=0,
        validate_every=0,
        checkpoint_every=0,
        sampling=SamplingDefaults(num_steps=12, guidance_scale=1.0),
    )
    result = train(recipe, tmp_path / "store", tmp_path / "run", progress=False)
    assert result.step == recipe.max_steps

    store = LatentStore(tmp_path / "store")
    learned = store.read(torch.arange(NUM_SAMPLES)).x0_mean.float().flatten(1)
    prompts = [store.captions(i)["full"] for i in range(NUM_SAMPLES)]
    model = load_model(tmp_path / "run")
    conditioning, null = encode_prompts(model, prompts)
    noise = initial_noise(model, [7] * NUM_SAMPLES, model.settings)
    with torch.inference_mode():
        drawn = draw_latents(model, conditioning, null, noise, model.settings).flatten(1)
    distances = torch.cdist(drawn, learned)
    assert distances.argmin(dim=1).tolist() == list(range(NUM_SAMPLES))
    apart = torch.cdist(learned, learned)[~torch.eye(NUM_SAMPLES, dtype=torch.bool)]
    assert float(distances.diagonal().max()) < 0.5 * float(apart.min())

    images = generate(model, prompts, [7] * NUM_SAMPLES)
    assert images.shape == (NUM_SAMPLES, 64, 64, 3)
