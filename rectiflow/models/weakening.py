"""A backbone made worse on purpose, for guidance that contrasts it with itself.

Blocks are left out, or their image tokens look at nothing but themselves and the text. Both last
as long as a `with`; the backbone does not know of them and runs as always before and after.
Source: arXiv 2411.18664 and Stability's SD3.5 code (skipped layers); arXiv 2403.17377 (perturbed
attention).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.attention import mask_attention


@contextmanager
def skip_blocks(backbone: Backbone, layers: Sequence[int]) -> Generator[None]:
    """Let tokens pass the blocks `layers`, counted from 0, as they come.

    Raises:
        ConfigError: the backbone has no such block.
    """
    blocks = _chosen(backbone, layers)
    try:
        for block in blocks:
            block.forward = _pass_through
        yield
    finally:
        for block in blocks:
            # The class's own is in sight again.
            del block.__dict__["forward"]


def _pass_through(tokens: Any, *others: object, num_out: int | None = None) -> Any:
    """What each kind of block returns if it does nothing; `num_out` as in `StreamBlock`."""
    return tokens if num_out is None else tokens[:, -num_out:]


@contextmanager
def perturb_attention(backbone: Backbone, layers: Sequence[int]) -> Generator[None]:
    """Let image tokens of the blocks `layers` look at themselves and the text, at no other.

    Text tokens look as always, and so does an attention that is only to the text.

    Raises:
        ConfigError: the backbone has no such block.
    """
    num_image, is_first = 0, False

    def beginning(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal num_image
        rows, columns = backbone.token_grid(arguments[0])
        num_image = rows * columns

    def entering(module: nn.Module, arguments: object) -> None:
        nonlocal is_first
        is_first = True

    def leaving(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal is_first
        is_first = False

    def choose(q: Tensor, k: Tensor) -> Tensor | None:
        nonlocal is_first
        # Of a block's attentions the first is the one among image tokens.
        if not is_first:
            return None
        is_first = False
        return image_tokens_alone(k.shape[2], num_image, k.device)

    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(beginning).remove)
        for block in _chosen(backbone, layers):
            stack.callback(block.register_forward_pre_hook(entering).remove)
            stack.callback(block.register_forward_hook(leaving).remove)
        stack.enter_context(mask_attention(choose))
        yield


def image_tokens_alone(
    num_tokens: int, num_image: int, device: torch.device
) -> Bool[Tensor, "n n"]:
    """Which token (row) may look at which; the image's are the last `num_image`."""
    allowed = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device)
    allowed[-num_image:, -num_image:] = torch.eye(num_image, dtype=torch.bool, device=device)
    return allowed


def _chosen(backbone: Backbone, layers: Sequence[int]) -> list[nn.Module]:
    depth = len(backbone.blocks)
    for layer in layers:
        if not 0 <= layer < depth:
            raise ConfigError(
                f"layers={list(layers)}: this model has no block {layer}; give numbers from 0 to "
                f"{depth - 1}"
            )
    return [backbone.blocks[layer] for layer in dict.fromkeys(layers)]
