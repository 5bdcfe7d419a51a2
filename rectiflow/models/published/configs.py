"""Configurations read off the tensors themselves, and which tensors a configuration asks for.

Names and shapes decide all that a network computes but three things: heads without QK-norm, the
autoencoder's groups of a norm and its latents' shift and scale. Those are as released unless a
config beside the tensors says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from rectiflow.base.errors import CheckpointError
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.frame import WIDTH_PER_DEPTH
from rectiflow.models.mmdit import MMDiT, MMDiTConfig, MMDiTXConfig
from rectiflow.models.published.given import finite_number, whole_number
from rectiflow.models.published.names import (
    Entry,
    Layout,
    autoencoder_entries,
    count_numbered,
    mmdit_entries,
)
from rectiflow.models.published.stored import StoredTensor

Shapes = Mapping[str, tuple[int, ...]]
NetworkConfig = MMDiTConfig | AutoencoderConfig

#: The released models; the turbo model has the large one's sizes.
RELEASED: dict[str, MMDiTConfig] = {
    "SD3-medium": MMDiTConfig(depth=24),
    "SD3.5-medium": MMDiTXConfig(depth=24, position_side=384, use_qk_norm=True, num_dual_blocks=13),
    "SD3.5-large or -large-turbo": MMDiTConfig(depth=38, use_qk_norm=True),
}

_BLOCKS = {"sai": "joint_blocks", "diffusers": "transformer_blocks"}


def entries_of(config: NetworkConfig) -> tuple[Entry, ...]:
    """One entry for each tensor that a file holds of the network."""
    if isinstance(config, AutoencoderConfig):
        names = _own_shapes(config)
        return autoencoder_entries(names, num_levels=len(config.channel_multipliers))
    if config.num_clip_tokens is not None:
        raise CheckpointError(
            "an MM-DiT with three sets of weights has no released layout; only models with one set "
            "for all text do"
        )
    return mmdit_entries(_own_shapes(config), depth=config.depth)


def layout_shapes(config: NetworkConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors in a layout, without a prefix."""
    shapes = _own_shapes(config)
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries_of(config):
        # No byte is needed to know what the changes do to a shape.
        empty = StoredTensor(dtype=torch.float32, shape=shapes[entry.ours], ranges=())
        found |= {name: part.shape for name, part in entry.from_ours(layout, empty).items()}
    return found


@cache
def _own_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = Autoencoder(config) if isinstance(config, AutoencoderConfig) else MMDiT(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if isinstance(config, AutoencoderConfig):
        return shapes
    return {"pos_embed": (1, config.position_side**2, config.hidden_dim)} | shapes


def infer_mmdit_config(shapes: Shapes, layout: Layout, given: Mapping[str, Any]) -> MMDiTConfig:
    """The configuration of an MM-DiT from its tensors' names and shapes in a layout.

    `given` holds what diffusers' config.json says; heads and the trained side are taken from it.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: sizes contradict each other.
    """
    blocks = _BLOCKS[layout]
    depth = count_numbered(shapes, blocks)
    second = "x_block.attn2.qkv.weight" if layout == "sai" else "attn2.to_q.weight"
    dual = sorted(_numbers(shapes, rf"{blocks}\.(\d+)\.{re.escape(second)}$"))
    if dual != list(range(len(dual))):
        raise ValueError(
            f"blocks {dual} have a second attention; only a model where the first blocks do is "
            "supported, as SD3.5-medium"
        )

    # The names of both layouts, whatever the sizes.
    probes = (
        "x_embedder.proj.weight",
        "y_embedder.mlp.0.weight",
        "context_embedder.weight",
        "pos_embed",
        "final_layer.linear.weight",
    )
    by_name = {e.ours: e.names(layout)[0] for e in mmdit_entries(probes, depth=depth)}
    width, in_channels, patch_size, _ = shapes[by_name["x_embedder.proj.weight"]]
    out_channels = shapes[by_name["final_layer.linear.weight"]][0] // patch_size**2
    norm = "x_block.attn.ln_q.weight" if layout == "sai" else "attn.norm_q.weight"
    head = shapes.get(f"{blocks}.0.{norm}")
    num_positions = shapes[by_name["pos_embed"]][1]
    position_side = math.isqrt(num_positions)
    if position_side**2 != num_positions:
        raise ValueError(f"{num_positions} positions do not form a square grid")
    trained_side = whole_number(given, "sample_size", 64 * patch_size) // patch_size
    sizes: dict[str, Any] = {
        "depth": depth,
        "width": None if width == WIDTH_PER_DEPTH * depth else width,
        "head_dim": head[0] if head else whole_number(given, "attention_head_dim", 64),
        "context_dim": shapes[by_name["context_embedder.weight"]][1],
        "pooled_dim": shapes[by_name["y_embedder.mlp.0.weight"]][1],
        "in_channels": in_channels,
        "patch_size": patch_size,
        "position_side": position_side,
        "base_side": min(trained_side, position_side),
        "use_qk_norm": head is not None,
        # Any other number is told with the shapes that do not go together.
        "out_channels": out_channels if in_channels == 2 * out_channels + 1 else None,
    }
    return MMDiTXConfig(**sizes, num_dual_blocks=len(dual)) if dual else MMDiTConfig(**sizes)


def infer_autoencoder_config(
    shapes: Shapes, layout: Layout, given: Mapping[str, Any]
) -> AutoencoderConfig:
    """The configuration of an autoencoder from its tensors' names and shapes in a layout.

    `given` holds what diffusers' config.json says; groups, shift and scale are taken from it.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: what is given is no such number.
    """
    down, block = ("down", "block") if layout == "sai" else ("down_blocks", "resnets")
    attention = "attn_1.q" if layout == "sai" else "attentions.0.to_q"
    mid = "mid" if layout == "sai" else "mid_block"
    num_levels = count_numbered(shapes, f"encoder.{down}")
    num_blocks = count_numbered(shapes, f"encoder.{down}.0.{block}")
    base, image_channels = shapes["encoder.conv_in.weight"][:2]
    return AutoencoderConfig(
        image_channels=image_channels,
        latent_channels=shapes["decoder.conv_in.weight"][1],
        base_channels=base,
        channel_multipliers=tuple(
            shapes[f"encoder.{down}.{i}.{block}.0.conv1.weight"][0] // base
            for i in range(num_levels)
        ),
        num_blocks=num_blocks,
        num_norm_groups=whole_number(given, "norm_num_groups", 32),
        use_mid_attention=f"encoder.{mid}.{attention}.weight" in shapes,
        latent_shift=finite_number(given, "shift_factor", AutoencoderConfig.latent_shift),
        latent_scale=finite_number(given, "scaling_factor", AutoencoderConfig.latent_scale),
    )


def _numbers(names: Mapping[str, Any], pattern: str) -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(pattern, name))}
