"""Backbones for inpainting: 33 channels in, 16 out, in every layout and as diffusers has them."""

import json
from dataclasses import replace

import pytest
import torch
from models.published.small_checkpoints import (
    SMALL,
    diffusers_output,
    diffusers_transformer,
    random_mmdit,
    write_single_file,
)
from models.small_backbones import CONFIGS, inputs, random_backbone
from models.test_flops import counted

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import CheckpointError, ConfigError
from rectiflow.models.flops import InputSize, forward_flops
from rectiflow.models.inpainting import InpaintingNetwork
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published import convert, load_mmdit

INPAINTING = {"in_channels": 33, "out_channels": 16}
CONFIG = replace(SMALL["sd3-medium"], **INPAINTING)


def told(num: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = (torch.rand(num, 1, 8, 12, generator=generator) > 0.5).float()
    return mask, torch.randn(num, 16, 8, 12, generator=generator)


def test_what_comes_in_and_what_goes_out() -> None:
    assert (CONFIG.latent_channels, CONFIG.is_inpainting) == (16, True)
    assert CONFIG.patch_features == 64
    usual = MMDiTConfig(depth=1)
    assert (usual.latent_channels, usual.is_inpainting) == (16, False)


@pytest.mark.parametrize("out_channels", [0, 8, 17, 33])
def test_other_numbers_of_channels_are_refused(out_channels: int) -> None:
    told = rf"out_channels={out_channels} does not go with in_channels=33: it is for inpainting"
    with pytest.raises(ConfigError, match=told):
        MMDiTConfig(depth=1, in_channels=33, out_channels=out_channels)


def test_files_of_other_models_are_as_they_were() -> None:
    written = to_json(MMDiTConfig(depth=2))
    assert "out_channels" not in written
    assert from_json(MMDiTConfig, written) == MMDiTConfig(depth=2)
    assert from_json(MMDiTConfig, to_json(CONFIG)) == CONFIG


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_backbone_can_be_one_and_costs_what_is_counted(kind: str) -> None:
    config = replace(CONFIGS[kind], **INPAINTING)
    backbone = random_backbone(config)
    z_t, t, conditioning = inputs()
    mask, masked = told()
    network = InpaintingNetwork(backbone=backbone, mask=mask, masked_latents=masked)
    with torch.no_grad():
        output = network(z_t, t, conditioning)
        assert output.shape == z_t.shape
        for i, other in enumerate((mask, masked)):
            changed = [mask, masked]
            changed[i] = 1.0 - other
            network = InpaintingNetwork(
                backbone=backbone, mask=changed[0], masked_latents=changed[1]
            )
            assert not torch.allclose(network(z_t, t, conditioning), output)
    size = InputSize(height=8, width=16, num_text=10)
    assert forward_flops(config, size) == pytest.approx(counted(config, size), rel=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("kind", SMALL)
def test_a_file_that_diffusers_saved_gives_its_outputs(kind, tmp_path) -> None:
    config = replace(SMALL[kind], **INPAINTING)
    theirs = diffusers_transformer(config)
    theirs.save_pretrained(tmp_path)
    ours = load_mmdit(tmp_path / "diffusion_pytorch_model.safetensors")
    assert ours.config == config
    z_t, t, conditioning = inputs()
    mask, masked = told()
    seen = torch.cat([z_t, mask.expand(2, -1, -1, -1), masked.expand(2, -1, -1, -1)], dim=1)
    expected = diffusers_output(theirs, seen, t, conditioning)
    network = InpaintingNetwork(backbone=ours, mask=mask, masked_latents=masked)
    with torch.no_grad():
        actual = network(z_t, t, conditioning)
    assert expected.std() > 0.5
    assert (actual - expected).abs().max() < 1e-5


def test_there_and_back_from_either_layout(tmp_path) -> None:
    model = random_mmdit(CONFIG)
    single = write_single_file(tmp_path / "a.safetensors", model)
    convert(single, tmp_path / "b")
    about = json.loads((tmp_path / "b" / "transformer" / "config.json").read_text())
    assert (about["in_channels"], about["out_channels"]) == (33, 16)
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3InpaintPipeline"
    convert(tmp_path / "b", tmp_path / "c.safetensors")
    for path in (single, tmp_path / "b", tmp_path / "c.safetensors"):
        loaded = load_mmdit(path)
        assert loaded.config == CONFIG
        state = loaded.state_dict()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_other_channels_in_a_file_are_told_by_the_shapes(tmp_path) -> None:
    model = random_mmdit(replace(SMALL["sd3-medium"], in_channels=20))
    model.final_layer = random_mmdit(SMALL["sd3-medium"]).final_layer
    path = write_single_file(tmp_path / "a.safetensors", model)
    told = r"final_layer.linear.* has the shape \[64.*an MM-DiT of depth 3 has \[80"
    with pytest.raises(CheckpointError, match=told):
        load_mmdit(path)


def test_a_backbone_that_takes_no_mask_is_not_given_one() -> None:
    mask, masked = told()
    with pytest.raises(ConfigError, match="in_channels=16 and no out_channels takes no mask; use"):
        InpaintingNetwork(
            backbone=random_backbone(CONFIGS["dit"]), mask=mask, masked_latents=masked
        )
