"""The autoencoder against diffusers', and the laws of its latents."""

import re

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig, LatentDistribution

SMALL = AutoencoderConfig(
    base_channels=8, channel_multipliers=(1, 2, 2, 4), num_blocks=2, num_norm_groups=4
)


def diffusers_names(state: dict[str, torch.Tensor], num_levels: int) -> dict[str, torch.Tensor]:
    """The state dict that diffusers' AutoencoderKL expects for the same network."""

    def rename(name: str) -> str:
        name = re.sub(r"encoder\.down\.(\d+)\.block", r"encoder.down_blocks.\1.resnets", name)
        name = re.sub(r"down\.(\d+)\.resample", r"down_blocks.\1.downsamplers.0", name)
        for level in range(num_levels):
            theirs = f"up_blocks.{num_levels - 1 - level}"
            name = name.replace(f"decoder.up.{level}.block", f"decoder.{theirs}.resnets")
            name = name.replace(f"up.{level}.resample", f"{theirs}.upsamplers.0")
        name = name.replace("nin_shortcut", "conv_shortcut")
        name = re.sub(r"coder\.norm_out", "coder.conv_norm_out", name)
        name = name.replace("mid.block_1", "mid_block.resnets.0")
        name = name.replace("mid.block_2", "mid_block.resnets.1")
        for ours, theirs in (("norm", "group_norm"), ("proj_out", "to_out.0")):
            name = name.replace(f"mid.attn_1.{ours}.", f"mid_block.attentions.0.{theirs}.")
        return re.sub(r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1.", name)

    return {
        rename(name): value[:, :, 0, 0] if "attn_1" in name and value.ndim == 4 else value
        for name, value in state.items()
    }


def images(num: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parity
def test_equals_diffusers_autoencoder():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    # In float64, where no rounding of a processor hides a difference.
    ours = Autoencoder(SMALL).eval().double()
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 32),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=SMALL.latent_shift,
        scaling_factor=SMALL.latent_scale,
    )
    theirs = theirs.eval().double()
    theirs.load_state_dict(diffusers_names(ours.state_dict(), 4), strict=True)
    with torch.no_grad():
        pictures = images().double()
        raw = theirs.encode(pictures).latent_dist
        mean = (raw.mean - SMALL.latent_shift) * SMALL.latent_scale
        encoded = ours.encode(pictures)
        assert (encoded.mean - mean).abs().max() < 1e-12
        std = torch.exp(0.5 * encoded.logvar)
        assert (std - raw.std * SMALL.latent_scale).abs().max() < 1e-12
        pixels = theirs.decode(mean / SMALL.latent_scale + SMALL.latent_shift).sample
        assert (ours.decode(mean) - pixels).abs().max() < 1e-12


def test_defaults_are_the_released_size():
    with torch.device("meta"):
        released = Autoencoder(AutoencoderConfig())
    assert sum(p.numel() for p in released.parameters()) == 83_819_683
    assert len(released.state_dict()) == 244


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_shapes_for_every_number_of_channels(channels):
    autoencoder = Autoencoder(
        AutoencoderConfig(
            latent_channels=channels, base_channels=8, num_norm_groups=4, use_mid_attention=False
        )
    )
    latents = autoencoder.encode(images(side=48)).mean
    assert latents.shape == (2, channels, 6, 6)
    assert autoencoder.decode(latents).shape == (2, 3, 48, 48)
    assert autoencoder.config.downsample_factor == 8


def test_kl_and_sampling_follow_the_closed_forms():
    shape = (3, 2, 4, 4)
    standard = LatentDistribution(mean=torch.zeros(shape), logvar=torch.zeros(shape))
    assert torch.equal(standard.kl_to_standard_normal(), torch.zeros(3))
    eps = torch.randn(shape)
    assert torch.equal(standard.sample(eps), eps)
    wide = LatentDistribution(mean=torch.ones(shape), logvar=torch.full(shape, 2.0))
    assert torch.allclose(wide.sample(eps), 1 + torch.e * eps)
    # KL = ½(mean² + var − 1 − log var), 32 values
    expected = 32 * 0.5 * (1 + torch.e**2 - 1 - 2)
    assert wide.kl_to_standard_normal()[0].item() == pytest.approx(expected, rel=1e-5)


def test_bad_sizes_teach():
    with pytest.raises(ValueError, match="30×30 px; both sides must be multiples of 8"):
        Autoencoder(SMALL).encode(images(side=30))
    with pytest.raises(ConfigError, match="base_channels=10 does not divide into"):
        AutoencoderConfig(base_channels=10)
    with pytest.raises(ConfigError, match="latent_scale=0.* must be positive"):
        AutoencoderConfig(latent_scale=0.0)
