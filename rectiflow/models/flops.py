"""What one forward pass of a backbone costs, from its config alone.

Counts as PyTorch's counter does: two operations for each multiply-add of matrix products,
convolutions and attention's two products; nothing for biases, norms and activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rectiflow.base.errors import ConfigError
from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.baselines.crossdit import CrossDiTConfig
from rectiflow.models.baselines.dit import DiTConfig
from rectiflow.models.baselines.uvit import KERNEL, STRIDE, UViTConfig
from rectiflow.models.layers.embeddings import TIME_EMBEDDING_DIM
from rectiflow.models.layers.feed_forward import MLP_RATIO
from rectiflow.models.mmdit import MMDiTConfig


@dataclass(frozen=True, kw_only=True)
class InputSize:
    """One sample as a backbone sees it: latents of height×width and `num_text` text tokens."""

    height: int
    width: int
    num_text: int


def num_parameters(config: BackboneConfig) -> int:
    """Trainable numbers of a backbone, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_backbone(config).parameters())


def num_image_tokens(config: BackboneConfig, size: InputSize) -> int:
    """Patches of one sample's latents.

    Raises:
        ConfigError: they do not divide into patches.
    """
    p = config.patch_size
    if size.height % p or size.width % p:
        raise ConfigError(
            f"latents of {size.height}×{size.width} do not divide into patches of {p}"
        )
    return (size.height // p) * (size.width // p)


def forward_flops(config: BackboneConfig, size: InputSize) -> int:
    """Operations of the forward pass for one sample; raises as `num_image_tokens`."""
    n, m = num_image_tokens(config, size), size.num_text
    blocks = sum(block_flops(config, i, n, m) for i in range(config.depth))
    return around_flops(config, size) + blocks


def around_flops(config: BackboneConfig, size: InputSize) -> int:
    """Those of the forward pass around the blocks: embedders, a UViT's levels, final layer."""
    n, m, d = num_image_tokens(config, size), size.num_text, config.hidden_dim
    vectors = linear(1, TIME_EMBEDDING_DIM + config.pooled_dim, d) + 2 * linear(1, d, d)
    around = vectors + linear(m, config.context_dim, d)
    if isinstance(config, UViTConfig):
        return around + levels(config, size)
    # Patches in, patches out, final modulation.
    around += linear(n, config.in_channels * config.patch_size**2 + config.patch_features, d)
    return around + linear(1, d, 2 * d)


def block_flops(config: BackboneConfig, number: int, num_image: int, num_text: int) -> int:
    """Floating-point operations of one block, by its number from 0, on so many tokens."""
    n, m, d = num_image, num_text, config.hidden_dim
    is_last = number == config.depth - 1
    match config:
        case MMDiTConfig():
            num_text_sets = len(config.text_streams)
            block = attention(n + m, n + m, d) + linear(1, d, 6 * d) + stream(n, d)
            if is_last:
                block += num_text_sets * linear(1, d, 2 * d) + linear(m, d, 3 * d)
            else:
                block += num_text_sets * linear(1, d, 6 * d) + stream(m, d)
            if number < config.num_second_attentions:
                # Its modulation and its four projections.
                block += attention(n, n, d) + linear(1, d, 3 * d) + linear(n, d, 4 * d)
            return block
        case DiTConfig():
            block = attention(n + m, n + m, d) + linear(1, d, 6 * d) + stream(n + m, d)
            unread = stream(m, d) - linear(m, d, 3 * d)
            return block - unread if is_last else block
        case CrossDiTConfig() | UViTConfig():
            return cross_block(n, m, d)


def linear(num: int, in_dim: int, out_dim: int) -> int:
    """A matrix product for each of `num` tokens."""
    return 2 * num * in_dim * out_dim


def attention(num_queries: int, num_keys: int, dim: int) -> int:
    """Queries with keys, and weights with values, over all heads."""
    return 2 * linear(num_queries, num_keys, dim)


def stream(num: int, dim: int) -> int:
    """A `StreamBlock`'s matrices: attention's four projections and the feed-forward network."""
    return linear(num, dim, (4 + 2 * MLP_RATIO) * dim)


def cross_block(num: int, num_text: int, dim: int) -> int:
    """A `CrossBlock`: modulation, self-attention, cross-attention, feed-forward network."""
    own = linear(1, dim, 6 * dim) + stream(num, dim) + attention(num, num, dim)
    cross = linear(num, dim, 2 * dim) + linear(num_text, dim, 2 * dim)
    return own + cross + attention(num, num_text, dim)


def levels(config: UViTConfig, size: InputSize) -> int:
    """A UViT's convolutions, their modulation, its entry and its final layer."""
    channels, d = config.level_channels, config.hidden_dim
    places = size.height * size.width
    total = linear(places, config.in_channels * KERNEL**2, channels[0])
    total += linear(1, d, 2 * channels[0]) + linear(places, channels[0], config.latent_channels)
    for c, below in zip(channels, (*channels[1:], d)):
        modulation = linear(1, d, 3 * c)
        down = 2 * linear(places, KERNEL**2 * c, c) + modulation
        # Twice the channels come in, and through the shortcut.
        up = 3 * linear(places, KERNEL**2 * c, c) + linear(places, 2 * c, c) + modulation
        total += config.num_residual_blocks * (down + up)
        # Shrinking and growing see STRIDE² places as one token of as many times the channels.
        total += 2 * linear(places // STRIDE**2, STRIDE**2 * c, below)
        places //= STRIDE**2
    return total
