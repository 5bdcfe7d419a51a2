"""Strips give what the whole picture gives, wherever they end, in less memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from models.published.small_checkpoints import random_autoencoder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from rectiflow.base.errors import ConfigError
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig, tiling
from rectiflow.models.autoencoder.tiling import STRIP_ROWS, decode_in_strips, encode_in_strips

CONFIG = AutoencoderConfig(
    base_channels=8, channel_multipliers=(1, 2, 2), num_blocks=1, num_norm_groups=4
)


def latents(height: int, width: int, *, num: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # Brighter from top to bottom, so that no strip has the picture's mean.
    ramp = torch.linspace(-2, 2, height)[:, None]
    return torch.randn(num, 16, height, width, generator=generator) + ramp


def images(height: int, width: int, *, num: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    ramp = torch.linspace(-1, 1, height)[:, None]
    return 0.4 * torch.rand(num, 3, height, width, generator=generator) + 0.6 * ramp


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
    assert strips.is_contiguous()


@pytest.mark.parametrize("strip_rows", [2, 3, 7, 16, 1000])
@pytest.mark.parametrize("size", [(4, 20), (20, 16), (48, 36)])
def test_strips_encode_the_whole_picture(strip_rows: int, size: tuple[int, int]) -> None:
    autoencoder = random_autoencoder(CONFIG).double()
    pictures = images(*size).double()
    with torch.no_grad():
        whole = autoencoder.encode(pictures)
    strips = encode_in_strips(autoencoder, pictures, strip_rows=strip_rows)
    assert whole.mean.std() > 0.3
    for mine, theirs in ((strips.mean, whole.mean), (strips.logvar, whole.logvar)):
        assert (mine - theirs).abs().max() < 1e-12 * theirs.abs().max()
        assert mine.is_contiguous()


@pytest.mark.parametrize(
    "changes",
    [
        {"use_mid_attention": False},
        {"channel_multipliers": (1,)},
        {"channel_multipliers": (1, 1, 2, 4), "num_blocks": 2},
    ],
    ids=str,
)
def test_every_kind_of_autoencoder_in_float32(changes: dict[str, object]) -> None:
    fields = {"base_channels": 8, "channel_multipliers": (1, 2), "num_norm_groups": 4} | changes
    autoencoder = random_autoencoder(AutoencoderConfig(**fields))
    z = latents(9, 6)
    with torch.no_grad():
        whole = autoencoder.decode(z)
        encoded = autoencoder.encode(whole)
    strips = decode_in_strips(autoencoder, z, strip_rows=5)
    assert (strips - whole).abs().max() < 1e-5 * whole.abs().max()
    mean = encode_in_strips(autoencoder, whole, strip_rows=5).mean
    assert (mean - encoded.mean).abs().max() < 1e-5 * encoded.mean.abs().max()


def test_what_comes_in_is_left_as_it_is() -> None:
    z, pictures = latents(6, 6), images(24, 24)
    decode_in_strips(random_autoencoder(CONFIG), z, strip_rows=4)
    encode_in_strips(random_autoencoder(CONFIG), pictures, strip_rows=4)
    assert torch.equal(z, latents(6, 6))
    assert torch.equal(pictures, images(24, 24))


def test_only_large_pictures_go_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, z = random_autoencoder(CONFIG), latents(9, 6)
    with torch.no_grad():
        whole = autoencoder.decode(z)
        mean = autoencoder.encode(whole).mean
    monkeypatch.setattr(tiling, "MAX_PIXELS_AT_ONCE", 36 * 24)
    assert torch.equal(tiling.decode(autoencoder, z), whole)
    assert torch.equal(tiling.encode(autoencoder, whole).mean, mean)
    monkeypatch.setattr(tiling, "MAX_PIXELS_AT_ONCE", 36 * 24 - 1)
    assert torch.equal(tiling.decode(autoencoder, z), decode_in_strips(autoencoder, z))
    in_strips = encode_in_strips(autoencoder, whole).mean
    assert torch.equal(tiling.encode(autoencoder, whole).mean, in_strips)
    assert not torch.equal(in_strips, mean)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that tensors of this thread hold at once during the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found, torch.no_grad():
        call()
    events = found.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def test_peak_memory_is_what_the_docstring_says() -> None:
    autoencoder = Autoencoder(replace(CONFIG, use_mid_attention=False, num_blocks=2))
    z = latents(96, 32, num=1)
    unit = 4 * 8 * 384 * 128
    in_strips = peak_bytes(lambda: decode_in_strips(autoencoder, z, strip_rows=8))
    whole = peak_bytes(lambda: autoencoder.decode(z))
    assert 1.5 * unit < in_strips < 2 * unit
    assert 5 * unit < whole < 5.5 * unit
    pictures = images(384, 128, num=1)
    in_strips = peak_bytes(lambda: encode_in_strips(autoencoder, pictures, strip_rows=8))
    whole = peak_bytes(lambda: autoencoder.encode(pictures))
    assert 1.25 * unit < in_strips < 2 * unit
    assert 4 * unit < whole < 4.8 * unit


def test_attention_takes_a_few_rows_at_once() -> None:
    autoencoder, z = Autoencoder(CONFIG), latents(48, 48, num=1)
    all_weights = 4 * (48 * 48) ** 2
    # A kernel that holds none of them is the first choice; strips hold few even without it.
    assert peak_bytes(lambda: autoencoder.decode(z)) < all_weights / 2
    with sdpa_kernel(SDPBackend.MATH):
        assert peak_bytes(lambda: autoencoder.decode(z)) > all_weights
        in_strips = peak_bytes(lambda: decode_in_strips(autoencoder, z, strip_rows=16))
    assert in_strips < all_weights


def test_strips_that_are_too_low_are_refused() -> None:
    assert STRIP_ROWS > 2
    with pytest.raises(ConfigError, match="strip_rows=1 must be at least 2; 32 to 256 is usual"):
        decode_in_strips(random_autoencoder(CONFIG), latents(4, 4), strip_rows=1)
    with pytest.raises(ConfigError, match="strip_rows=0 must be at least 2; 32 to 256 is usual"):
        encode_in_strips(random_autoencoder(CONFIG), images(16, 16), strip_rows=0)


def test_sides_are_checked_before_any_strip() -> None:
    with pytest.raises(ValueError, match="30×16 px; both sides must be multiples of 4"):
        encode_in_strips(random_autoencoder(CONFIG), images(30, 16))
