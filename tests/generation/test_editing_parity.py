"""Latents of edited pictures against diffusers' SD3 pipelines, on small random parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.published.small_checkpoints import SMALL, diffusers_transformer, random_autoencoder
from models.small_backbones import inputs
from PIL import Image
from tiny_model import tiny_model

from rectiflow.generation.editing import STRENGTH, Edit, encode_edit
from rectiflow.generation.latents import draw_latents
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import decode_latents
from rectiflow.models.published import load_mmdit, part_of, save_diffusers_folder
from rectiflow.sampling import ReleasedGrid

SETTINGS = SamplingSettings(num_steps=6, guidance_scale=3.0, shift=3.0, grid=ReleasedGrid())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Any, Any, Model]]:
    """in_channels → diffusers' transformer and autoencoder, and our model of the same weights."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("parts")
    autoencoder = random_autoencoder()
    with torch.no_grad():
        # No spread, so that their drawn posterior is our mean.
        autoencoder.encoder.conv_out.weight[16:] = 0.0
        autoencoder.encoder.conv_out.bias[16:] = -60.0
    save_diffusers_folder(folder / "whole", {"autoencoder": part_of(autoencoder)})
    vae = AutoencoderKL.from_pretrained(folder / "whole" / "vae").eval()

    def pair(in_channels: int) -> tuple[Any, Any, Model]:
        changes = {} if in_channels == 16 else {"in_channels": 33, "out_channels": 16}
        transformer = diffusers_transformer(replace(SMALL["sd3.5-medium"], **changes))
        place: Path = folder / str(in_channels)
        transformer.save_pretrained(place)
        model = replace(
            tiny_model(),
            backbone=load_mmdit(place / "diffusion_pytorch_model.safetensors"),
            autoencoder=autoencoder,
            settings=SETTINGS,
        )
        return transformer, vae, model

    return pair


def source() -> np.ndarray:
    rng = np.random.default_rng(6)
    return rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def mask() -> np.ndarray:
    # Of whole latents, of which diffusers looks at one pixel each.
    painted = np.zeros((64, 64), dtype=np.uint8)
    painted[16:48, 8:40] = 255
    return painted


@pytest.mark.parity
@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize(
    ("kind", "in_channels"), [("Img2Img", 16), ("Inpaint", 16), ("Inpaint", 33)]
)
def test_latents_are_those_of_diffusers(
    pairs: Callable[[int], tuple[Any, Any, Model]], kind: str, in_channels: int, strength: float
) -> None:
    import diffusers

    transformer, vae, model = pairs(in_channels)
    parts = dict.fromkeys(
        f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    )
    pipeline = getattr(diffusers, f"StableDiffusion3{kind}Pipeline")(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    _, _, prompts = inputs()
    conditioning, null = prompts[:1], prompts[1:]
    masked = {"mask_image": Image.fromarray(mask())} if kind == "Inpaint" else {}
    expected = pipeline(
        image=Image.fromarray(source()),
        **masked,
        height=64,
        width=64,
        strength=strength,
        num_inference_steps=SETTINGS.num_steps,
        guidance_scale=SETTINGS.guidance_scale,
        prompt_embeds=conditioning.context,
        pooled_prompt_embeds=conditioning.pooled,
        negative_prompt_embeds=null.context,
        negative_pooled_prompt_embeds=null.pooled,
        generator=torch.Generator().manual_seed(8),
        output_type="latent",
    ).images

    # Their generator draws for the source's posterior first, unless nothing asks for it.
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn(1, 16, 8, 8, generator=generator)
    if not (in_channels == 33 and strength == 1.0):
        noise = torch.randn(1, 16, 8, 8, generator=generator)
    edit = Edit(source=source(), strength=strength, mask=mask() if masked else None)
    with torch.no_grad():
        found = draw_latents(
            model, conditioning, null, noise, SETTINGS, edit=encode_edit(model, edit)
        )
        pixels = decode_latents(model, found)
        # Their inpainting leaves the shift out here.
        config = vae.config
        raw = found / config.scaling_factor + config.shift_factor
        expected_pixels = vae.decode(raw, return_dict=False)[0]
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (pixels - expected_pixels).abs().max() < 1e-4


@pytest.mark.parity
def test_the_usual_strength_is_theirs() -> None:
    import inspect

    from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline

    for pipeline in (StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline):
        assert inspect.signature(pipeline.__call__).parameters["strength"].default == STRENGTH
