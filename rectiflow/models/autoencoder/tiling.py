"""Pictures of any size through the autoencoder: whole where they fit, in horizontal strips above.

On both walks instead of `Autoencoder.encode` and `Autoencoder.decode`. Tiles that go through by
themselves differ where they meet, because a group norm's mean and variance are those of the tile;
blending hides the seam, not the difference. Here each norm is over the whole picture, so there are
neither: strips give what the whole picture gives, to within rounding (`models.autoencoder.strips`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.models.autoencoder.autoencoder import Autoencoder, LatentDistribution
from rectiflow.models.autoencoder.layers import (
    Downsample,
    Level,
    MidBlock,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    activate,
    inference_layout,
)
from rectiflow.models.autoencoder.strips import (
    MIN_STRIP_ROWS,
    FeatureMap,
    convolved,
    downsampled,
    normalised,
    residual,
    upsampled,
    written,
)

#: Larger pictures go through in strips.
MAX_PIXELS_AT_ONCE = 1024 * 1024
#: Rows of a strip, at each resolution. Every strip computes some rows of its neighbours again.
STRIP_ROWS = 64
#: Rows of the attention matrix in the middle that are held at once.
NUM_QUERIES_AT_ONCE = 512


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Float[Tensor, "b c h w"]) -> LatentDistribution:
    """`autoencoder.encode(images)`, in strips if a picture is above `MAX_PIXELS_AT_ONCE`.

    Raises:
        ValueError: a side is not a multiple of the downsampling factor.
    """
    if images.shape[2] * images.shape[3] > MAX_PIXELS_AT_ONCE:
        return encode_in_strips(autoencoder, images)
    return autoencoder.encode(images)


@torch.no_grad()
def decode(
    autoencoder: Autoencoder, latents: Float[Tensor, "b z h w"]
) -> Float[Tensor, "b c h2 w2"]:
    """`autoencoder.decode(latents)`, in strips if a picture is above `MAX_PIXELS_AT_ONCE`."""
    num_latents = latents.shape[2] * latents.shape[3]
    if num_latents * autoencoder.config.downsample_factor**2 > MAX_PIXELS_AT_ONCE:
        return decode_in_strips(autoencoder, latents)
    return autoencoder.decode(latents)


@torch.no_grad()
def encode_in_strips(
    autoencoder: Autoencoder, images: Float[Tensor, "b c h w"], *, strip_rows: int = STRIP_ROWS
) -> LatentDistribution:
    """`autoencoder.encode(images)` to within rounding: 1e-5 in float32, 1e-12 in float64.

    One map is kept of each residual block, written over the block's input where it has the same
    size, down to the latents' size, at which the middle of the encoder runs whole.

    The peak, at the full resolution, is a map of base_channels and the map of half the sides that
    is made from it: 1.25 such maps and a few strips, where `encode` holds four. In exchange first
    convolutions of blocks are computed twice.

    Raises:
        ConfigError: strip_rows is below 2.
        ValueError: a side is not a multiple of the downsampling factor.
    """
    _check_strip_rows(strip_rows)
    autoencoder.check_sides(images)
    encoder = autoencoder.encoder
    start = convolved(encoder.conv_in, FeatureMap.of(inference_layout(images)))
    x = FeatureMap.of(written(start, strip_rows))
    for level in encoder.down:
        assert isinstance(level, Level)
        x = _blocks(level, x, strip_rows)
        if isinstance(level.resample, Downsample):
            x = FeatureMap.of(written(downsampled(level.resample, x), strip_rows))
    assert x.stored is not None
    moments = encoder.conv_out(activate(encoder.norm_out, _middle(encoder.mid, x.stored)))
    return autoencoder.normalised(LatentDistribution.of_moments(moments))


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
    and a few strips, where `decode` holds five. As released, 1.5 maps are 768 bytes a pixel in
    float32. In exchange first convolutions of blocks are computed twice, and those behind a change
    of resolution three times.

    Raises:
        ConfigError: strip_rows is below 2.
    """
    _check_strip_rows(strip_rows)
    decoder = autoencoder.decoder
    raw_latents = inference_layout(autoencoder.raw_latents(latents))
    x = FeatureMap.of(_middle(decoder.mid, decoder.conv_in(raw_latents)))
    for level in reversed(decoder.up):
        assert isinstance(level, Level)
        x = _blocks(level, x, strip_rows)
        if isinstance(level.resample, Upsample):
            x = upsampled(level.resample, x)
    activation = normalised(decoder.norm_out, x, strip_rows)
    return written(convolved(decoder.conv_out, x, activation), strip_rows).contiguous()


def _check_strip_rows(strip_rows: int) -> None:
    if strip_rows < MIN_STRIP_ROWS:
        raise ConfigError(
            f"strip_rows={strip_rows} must be at least {MIN_STRIP_ROWS}; 32 to 256 is usual"
        )


def _blocks(level: Level, x: FeatureMap, strip_rows: int) -> FeatureMap:
    for block in level.block:
        assert isinstance(block, ResidualBlock)
        x = residual(block, x, strip_rows)
    return x


def _middle(mid: MidBlock, x: Tensor) -> Tensor:
    x = mid.block_1(x)
    if isinstance(mid.attn_1, SpatialAttention):
        x = mid.attn_1(x, num_queries_at_once=NUM_QUERIES_AT_ONCE)
    return mid.block_2(x)
