"""Decoding in horizontal strips: large pictures without their memory, and without seams.

On the walk of a prompt instead of `Autoencoder.decode`. Tiles that are decoded by themselves differ
where they meet, because a group norm's mean and variance are those of the tile; blending hides the
seam, not the difference. Here each norm is over the whole picture: its statistics are summed up
strip by strip before any strip is normalised, so that nothing but rounding depends on the strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.base.errors import ConfigError
from rectiflow.models.autoencoder.autoencoder import Autoencoder
from rectiflow.models.autoencoder.layers import (
    Level,
    MidBlock,
    ResidualBlock,
    SpatialAttention,
    Upsample,
)

#: Rows of a strip, at each resolution. Every strip computes some rows of its neighbours again.
STRIP_ROWS = 64
#: Rows of the attention matrix in the middle that are held at once.
NUM_QUERIES_AT_ONCE = 512
#: A 3×3 convolution sees one row above and below.
REACH = 1

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A map [b c h w] that is read by rows; `stored` is all of it, where it lies in memory."""

    height: int
    read: Callable[[int, int], Tensor]
    stored: Tensor | None = None

    @staticmethod
    def of(stored: Float[Tensor, "b c h w"]) -> FeatureMap:
        """A map that lies in memory."""
        return FeatureMap(
            height=stored.shape[2],
            read=lambda top, bottom: stored[:, :, top:bottom],
            stored=stored,
        )

    def around(self, top: int, bottom: int, reach: int) -> tuple[int, int]:
        """Rows top to bottom and as many more as there are, up to `reach`, above and below."""
        return max(top - reach, 0), min(bottom + reach, self.height)

    def strips(self, num_rows: int) -> Iterator[tuple[int, int]]:
        """First row and row behind the last of each strip; the last strip may be lower."""
        for top in range(0, self.height, num_rows):
            yield top, min(top + num_rows, self.height)


@torch.no_grad()
def decode_in_strips(
    autoencoder: Autoencoder, latents: Float[Tensor, "b z h w"], *, strip_rows: int = STRIP_ROWS
) -> Float[Tensor, "b c h2 w2"]:
    """`autoencoder.decode(latents)` to within rounding: 1e-5 in float32, 1e-12 in float64.

    The middle of the decoder runs whole, at the latents' size, its attention over all of the
    picture for a few queries at once. From there on one map is kept of each residual block, written
    over the block's input where it has the same size; all else lives for a strip.

    The peak, at the full resolution, is a map of base_channels and, while its first block is
    written, the map of half the sides and twice the channels that it is made from: 1.5 such maps
    and a few strips, where `decode` holds seven. As released, 1.5 maps are 768 bytes a pixel in
    float32. In exchange first convolutions of blocks are computed twice, and those behind a change
    of resolution three times.

    Raises:
        ConfigError: strip_rows is below 2.
    """
    # A block reads two rows beyond its strip, which must not be written over already.
    if strip_rows < 2 * REACH:
        raise ConfigError(f"strip_rows={strip_rows} must be at least 2; 32 to 256 is usual")
    decoder = autoencoder.decoder
    x = FeatureMap.of(_middle(decoder.mid, decoder.conv_in(autoencoder.raw_latents(latents))))
    for level in reversed(decoder.up):
        assert isinstance(level, Level)
        for block in level.block:
            assert isinstance(block, ResidualBlock)
            x = _residual(block, x, strip_rows)
        if isinstance(level.resample, Upsample):
            x = _upsampled(level.resample.conv, x)
    activation = _normalise(decoder.norm_out, x, strip_rows)
    image = FeatureMap(
        height=x.height, read=lambda t, b: _convolve(decoder.conv_out, x, activation, t, b)
    )
    return _write(image, None, strip_rows)


def _middle(mid: MidBlock, x: Tensor) -> Tensor:
    x = mid.block_1(x)
    if isinstance(mid.attn_1, SpatialAttention):
        x = mid.attn_1(x, num_queries_at_once=NUM_QUERIES_AT_ONCE)
    return mid.block_2(x)


def _residual(block: ResidualBlock, x: FeatureMap, strip_rows: int) -> FeatureMap:
    """A residual block; its result takes the place of its input where they are alike."""
    first = _normalise(block.norm1, x, strip_rows)
    hidden = FeatureMap(height=x.height, read=lambda t, b: _convolve(block.conv1, x, first, t, b))
    second = _normalise(block.norm2, hidden, strip_rows)

    def read(top: int, bottom: int) -> Tensor:
        # All rows of x that are needed, read once.
        start, end = x.around(top, bottom, 2 * REACH)
        strip = x.read(start, end)
        near = FeatureMap(height=x.height, read=lambda t, b: strip[:, :, t - start : b - start])
        near_hidden = FeatureMap(
            height=x.height, read=lambda t, b: _convolve(block.conv1, near, first, t, b)
        )
        result = _convolve(block.conv2, near_hidden, second, top, bottom)
        return result.add_(block.nin_shortcut(near.read(top, bottom)))

    is_alike = block.conv1.in_channels == block.conv2.out_channels
    result = FeatureMap(height=x.height, read=read)
    return FeatureMap.of(_write(result, x.stored if is_alike else None, strip_rows))


def _upsampled(conv: nn.Conv2d, x: FeatureMap) -> FeatureMap:
    """Twice the sides and a convolution, computed where it is read."""

    def nearest(top: int, bottom: int) -> Tensor:
        start = top // 2
        doubled = F.interpolate(x.read(start, (bottom + 1) // 2), scale_factor=2.0, mode="nearest")
        return doubled[:, :, top - 2 * start : bottom - 2 * start]

    doubled = FeatureMap(height=2 * x.height, read=nearest)
    return FeatureMap(height=doubled.height, read=lambda t, b: _convolve(conv, doubled, None, t, b))


def _convolve(
    conv: nn.Conv2d, x: FeatureMap, activation: Activation | None, top: int, bottom: int
) -> Tensor:
    """Rows of a 3×3 convolution of the activated map; zeros stand around the map's own rows."""
    start, end = x.around(top, bottom, REACH)
    strip = x.read(start, end)
    if activation is not None:
        strip = activation(strip)
    above, below = start - (top - REACH), bottom + REACH - end
    strip = F.pad(strip, (REACH, REACH, above, below))
    return F.conv2d(strip, conv.weight, conv.bias)


def _normalise(norm: nn.GroupNorm, x: FeatureMap, strip_rows: int) -> Activation:
    """SiLU of the group norm with the statistics of the whole map, summed in float64."""
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    count = 0
    for top, bottom in x.strips(strip_rows):
        strip = x.read(top, bottom).double()
        groups = strip.reshape(len(strip), norm.num_groups, -1)
        sums.append(groups.sum(dim=-1))
        squares.append(groups.square().sum(dim=-1))
        count += groups.shape[-1]
    mean = torch.stack(sums).sum(dim=0) / count
    variance = torch.stack(squares).sum(dim=0) / count - mean.square()
    rstd = (variance + norm.eps).rsqrt()
    # (x − mean)·rstd·weight + bias as x·scale + shift
    repeats = norm.num_channels // norm.num_groups
    scale = norm.weight * rstd.repeat_interleave(repeats, dim=1)
    shift = norm.bias - mean.repeat_interleave(repeats, dim=1) * scale
    dtype = norm.weight.dtype
    scale, shift = (value.to(dtype)[:, :, None, None] for value in (scale, shift))
    return lambda strip: F.silu(torch.addcmul(shift, strip, scale), inplace=True)


def _write(x: FeatureMap, target: Tensor | None, strip_rows: int) -> Tensor:
    """All of a map in memory, in `target` where there is one, even if the map is read from it.

    Each strip is written when the next one has been read, whose upper rows reach into it.
    """
    waiting: tuple[int, int, Tensor] | None = None
    for top, bottom in x.strips(strip_rows):
        strip = x.read(top, bottom)
        if target is None:
            target = strip.new_empty(*strip.shape[:2], x.height, strip.shape[3])
        if waiting is not None:
            target[:, :, waiting[0] : waiting[1]] = waiting[2]
        waiting = (top, bottom, strip)
    assert target is not None
    assert waiting is not None
    target[:, :, waiting[0] : waiting[1]] = waiting[2]
    return target
