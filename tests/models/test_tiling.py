"""Decoding in strips is decoding: the same picture, wherever the strips end, in less memory."""

from dataclasses import replace

import pytest
import torch
from models.published.small_checkpoints import random_autoencoder
from torch.profiler import ProfilerActivity, profile

from rectiflow.base.errors import ConfigError
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.autoencoder.tiling import STRIP_ROWS, decode_in_strips

CONFIG = AutoencoderConfig(
    base_channels=8, channel_multipliers=(1, 2, 2), num_blocks=1, num_norm_groups=4
)


def latents(height: int, width: int, *, num: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # Brighter from top to bottom, so that no strip has the picture's mean.
    ramp = torch.linspace(-2, 2, height)[:, None]
    return torch.randn(num, 16, height, width, generator=generator) + ramp


@pytest.mark.parametrize("strip_rows", [2, 3, 7, 16, 1000])
@pytest.mark.parametrize("size", [(1, 5), (5, 4), (12, 9)])
def test_strips_give_the_whole_picture(strip_rows: int, size: tuple[int, int]) -> None:
    autoencoder = random_autoencoder(CONFIG).double()
    z = latents(*size).double()
    with torch.no_grad():
        whole = autoencoder.decode(z)
    strips = decode_in_strips(autoencoder, z, strip_rows=strip_rows)
    assert whole.std() > 0.3
    assert (strips - whole).abs().max() < 1e-12 * whole.abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {"use_mid_attention": False},
        {"channel_multipliers": (1,)},
        {"channel_multipliers": (1, 1, 2, 4), "num_blocks": 2},
    ],
    ids=str,
)
def test_every_kind_of_decoder_in_float32(changes: dict[str, object]) -> None:
    fields = {"base_channels": 8, "channel_multipliers": (1, 2), "num_norm_groups": 4} | changes
    autoencoder = random_autoencoder(AutoencoderConfig(**fields))
    z = latents(9, 6)
    with torch.no_grad():
        whole = autoencoder.decode(z)
    strips = decode_in_strips(autoencoder, z, strip_rows=5)
    assert (strips - whole).abs().max() < 1e-5 * whole.abs().max()


def test_latents_are_left_as_they_are() -> None:
    z = latents(6, 6)
    decode_in_strips(random_autoencoder(CONFIG), z, strip_rows=4)
    assert torch.equal(z, latents(6, 6))


def peak_bytes(decode) -> int:
    """The most that tensors of this thread hold at once while it decodes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found, torch.no_grad():
        decode()
    events = found.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def test_peak_memory_is_what_the_docstring_says() -> None:
    autoencoder = Autoencoder(replace(CONFIG, use_mid_attention=False))
    z = latents(96, 64, num=1)
    unit = 4 * 8 * 384 * 256
    in_strips = peak_bytes(lambda: decode_in_strips(autoencoder, z, strip_rows=8))
    whole = peak_bytes(lambda: autoencoder.decode(z))
    assert 1.5 * unit < in_strips < 2 * unit
    assert 7 * unit < whole < 7.5 * unit


def test_attention_takes_a_few_rows_at_once() -> None:
    autoencoder, z = Autoencoder(CONFIG), latents(48, 48, num=1)
    whole = peak_bytes(lambda: autoencoder.decode(z))
    assert peak_bytes(lambda: decode_in_strips(autoencoder, z, strip_rows=16)) < whole / 3


def test_strips_that_are_too_low_are_refused() -> None:
    assert STRIP_ROWS > 2
    with pytest.raises(ConfigError, match="strip_rows=1 must be at least 2; 32 to 256 is usual"):
        decode_in_strips(random_autoencoder(CONFIG), latents(4, 4), strip_rows=1)
