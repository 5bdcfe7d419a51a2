"""A model of small squares is fine-tuned on larger pictures of three shapes, and draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import tiny_autoencoder, tiny_backbone, tiny_conditioner

from rectiflow.data.buckets import buckets_for
from rectiflow.data.encode import encode_folder
from rectiflow.generation import frozen_parts
from rectiflow.generation.model import load_model
from rectiflow.generation.text_to_image import generate
from rectiflow.recipes.highres import highres
from rectiflow.recipes.small import small
from rectiflow.sampling import SamplingDefaults
from rectiflow.shapeworld.folder import write_folder
from rectiflow.shapeworld.world import SMALL
from rectiflow.training.loop import train

SIZES_PX = [(128, 128), (96, 176), (176, 96), (64, 128)]


@pytest.mark.system
def test_from_64_px_squares_to_three_shapes_at_128_px(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_parts, "load_autoencoder", tiny_autoencoder)
    monkeypatch.setattr(frozen_parts, "load_prompt_encoder", tiny_conditioner)
    parts = tiny_autoencoder(), tiny_conditioner()
    folder = tmp_path / "pictures"
    write_folder(SMALL, folder, count=9, scale=2, aspects=[(1, 1), (2, 1), (1, 2)])
    encode_folder(folder, tmp_path / "squares", *parts, resolution_px=64)
    few = {
        "batch_size": 2,
        "num_validation": 3,
        "validate_every": 0,
        "sample_every": 0,
        "sampling": SamplingDefaults(num_steps=2, guidance_scale=1.0),
    }
    first = replace(small("low", tiny_backbone().config), max_steps=1, **few)
    train(first, tmp_path / "squares", tmp_path / "low", progress=False)

    buckets = buckets_for(["1:1", "2:1", "1:2"], resolution_px=128, multiple_px=16)
    report = encode_folder(folder, tmp_path / "store", *parts, resolution_px=128, buckets=buckets)
    assert set(report.num_by_bucket.values()) == {3}
    recipe = replace(highres(str(tmp_path / "low")), max_steps=4, **few)
    train(recipe, tmp_path / "store", tmp_path / "high", progress=False)

    model = load_model(tmp_path / "high")
    assert model.backbone.config.use_qk_norm
    assert model.resolution_px == 128
    assert model.settings.shift == recipe.shift.alpha == 2.0 * first.shift.alpha
    for height_px, width_px in SIZES_PX:
        sized = replace(model.settings, height_px=height_px, width_px=width_px)
        images = generate(model, ["a photo of a red circle"], [0], sized)
        assert images.shape == (1, height_px, width_px, 3)
