"""Feature maps that are computed strip by strip, by horizontal strips of their rows.

What `models.autoencoder.tiling` puts both halves of the autoencoder together from. A convolution
reads a row more on either side of a strip; a group norm's statistics are summed up over all strips
before any is normalised, so that nothing but rounding depends on where the strips end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.models.autoencoder.layers import Downsample, ResidualBlock, Upsample, double

#: A 3×3 convolution sees one row above and below.
REACH = 1
#: A residual block, two of them, reads as many rows beyond its strip, which must not be written
#: over already.
MIN_STRIP_ROWS = 2 * REACH

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


def convolved(conv: nn.Conv2d, x: FeatureMap, activation: Activation | None = None) -> FeatureMap:
    """A 3×3 convolution of the activated map, computed where it is read."""
    return FeatureMap(
        height=x.height, read=lambda top, bottom: _convolve(conv, x, activation, top, bottom)
    )


def residual(block: ResidualBlock, x: FeatureMap, strip_rows: int) -> FeatureMap:
    """A residual block; its result takes the place of its input where they are alike."""
    first = normalised(block.norm1, x, strip_rows)
    second = normalised(block.norm2, convolved(block.conv1, x, first), strip_rows)

    def read(top: int, bottom: int) -> Tensor:
        # All rows of x that are needed, read once.
        start, end = x.around(top, bottom, MIN_STRIP_ROWS)
        strip = x.read(start, end)
        near = FeatureMap(height=x.height, read=lambda t, b: strip[:, :, t - start : b - start])
        result = _convolve(block.conv2, convolved(block.conv1, near, first), second, top, bottom)
        return result.add_(block.nin_shortcut(near.read(top, bottom)))

    is_alike = block.conv1.in_channels == block.conv2.out_channels
    result = FeatureMap(height=x.height, read=read)
    return FeatureMap.of(written(result, strip_rows, into=x.stored if is_alike else None))


def upsampled(upsample: Upsample, x: FeatureMap) -> FeatureMap:
    """Twice the sides, computed where it is read."""
    kernel = upsample.summed_kernel()

    def read(top: int, bottom: int) -> Tensor:
        # Row i reaches rows 2i−1 to 2i+2.
        start, end = max((top - 1) // 2, 0), min(bottom // 2 + 1, x.height)
        strip = double(x.read(start, end), kernel, upsample.conv.bias)
        return strip[:, :, top - 2 * start : bottom - 2 * start]

    return FeatureMap(height=2 * x.height, read=read)


def downsampled(downsample: Downsample, x: FeatureMap) -> FeatureMap:
    """Half the sides, computed where it is read."""

    def read(top: int, bottom: int) -> Tensor:
        # Row o sees rows 2o to 2o+2, of which the last one lies beyond the map for the lowest o.
        end = min(2 * bottom + 1, x.height)
        strip = F.pad(x.read(2 * top, end), (0, 1, 0, 2 * bottom + 1 - end))
        return downsample.conv(strip)

    return FeatureMap(height=x.height // 2, read=read)


def normalised(norm: nn.GroupNorm, x: FeatureMap, strip_rows: int) -> Activation:
    """SiLU of the group norm with the statistics of the whole map, summed in float64."""
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    count = 0
    for top, bottom in x.strips(strip_rows):
        strip = x.read(top, bottom).double()
        # First over the pixels of each channel, which is quick in any memory layout.
        per_group = (len(strip), norm.num_groups, -1)
        sums.append(strip.sum(dim=(2, 3)).reshape(per_group).sum(dim=-1))
        squares.append(strip.square().sum(dim=(2, 3)).reshape(per_group).sum(dim=-1))
        count += strip[0].numel() // norm.num_groups
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


def written(x: FeatureMap, strip_rows: int, *, into: Tensor | None = None) -> Tensor:
    """All of a map in memory, in `into` where it is given, even if the map is read from it.

    Each strip is written when the next one has been read, whose upper rows reach into it.
    """
    waiting: tuple[int, int, Tensor] | None = None
    for top, bottom in x.strips(strip_rows):
        strip = x.read(top, bottom)
        if into is None:
            into = _empty(strip, x.height)
        if waiting is not None:
            into[:, :, waiting[0] : waiting[1]] = waiting[2]
        waiting = (top, bottom, strip)
    assert into is not None
    assert waiting is not None
    into[:, :, waiting[0] : waiting[1]] = waiting[2]
    return into


def _empty(strip: Tensor, height: int) -> Tensor:
    """Memory for the map that a strip is from, in the strip's layout."""
    b, c, _, width = strip.shape
    is_last = strip.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        (b, c, height, width),
        dtype=strip.dtype,
        device=strip.device,
        memory_format=torch.channels_last if is_last else torch.contiguous_format,
    )


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
