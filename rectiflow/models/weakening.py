"""A backbone made worse on purpose, for guidance that contrasts it with itself.

Blocks are left out, or their image tokens look at nothing but themselves and the text. The worse
network shares the weights of the given one, which is never changed: both may run at once.
Source: arXiv 2411.18664 and Stability's SD3.5 code (skipped layers); arXiv 2403.17377 (perturbed
attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone, Network
from rectiflow.models.layers.attention import mask_attention
from rectiflow.models.substitution import with_modules


def skip_blocks(backbone: Backbone, layers: Sequence[int]) -> Network:
    """The backbone with tokens that pass the blocks `layers`, counted from 0, as they come.

    Raises:
        ConfigError: the backbone has no such block.
    """
    blocks = _chosen(backbone, layers)
    return with_modules(backbone, {block: _PassThrough() for block in blocks})


def perturb_attention(backbone: Backbone, layers: Sequence[int]) -> Network:
    """The backbone with image tokens that in `layers` look at themselves and the text, no other.

    So do those of an MMDiT-X in their second attention. Text tokens look as always, and so does an
    attention that is only to the text.

    Raises:
        ConfigError: the backbone has no such block.
    """
    blocks = _chosen(backbone, layers)

    def network(z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        rows, columns = backbone.token_grid(z_t)
        perturbed = {block: _PerturbedBlock(block, rows * columns) for block in blocks}
        return with_modules(backbone, perturbed)(z_t, t, conditioning)

    return network


def image_tokens_alone(
    num_queries: int, num_keys: int, num_image: int, device: torch.device
) -> Bool[Tensor, "n m"]:
    """Which query (row) may look at which key; the image's are the last `num_image` of both."""
    allowed = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    allowed[-num_image:, -num_image:] = torch.eye(num_image, dtype=torch.bool, device=device)
    return allowed


class _PassThrough(nn.Module):
    """What each kind of block returns if it does nothing; `num_out` as in `StreamBlock`."""

    def forward(
        self, tokens: Any, *others: object, num_out: int | None = None, **options: object
    ) -> Any:
        return tokens if num_out is None else tokens[:, -num_out:]


class _PerturbedBlock(nn.Module):
    """A block in whose attentions among image tokens these look at themselves."""

    def __init__(self, block: nn.Module, num_image: int) -> None:
        super().__init__()
        self.block = block
        self.num_image = num_image

    def forward(self, *arguments: Any, **options: Any) -> Any:
        def choose(q: Tensor, k: Tensor) -> Tensor:
            return image_tokens_alone(q.shape[2], k.shape[2], self.num_image, k.device)

        with mask_attention(choose):
            # As it is written: a compiled graph would not ask for masks.
            return self.block.forward(*arguments, **options)


def _chosen(backbone: Backbone, layers: Sequence[int]) -> list[nn.Module]:
    depth = len(backbone.blocks)
    for layer in layers:
        if not 0 <= layer < depth:
            raise ConfigError(
                f"layers={list(layers)}: this model has no block {layer}; give numbers from 0 to "
                f"{depth - 1}"
            )
    return [backbone.blocks[layer] for layer in dict.fromkeys(layers)]
