"""A backbone's image tokens between its blocks, from outside; backbones do not know of it.

Blocks pass on one sequence or several: a UViT's and a CrossDiT's the image tokens alone, a DiT's
text and image tokens joined, an MM-DiT's a stream of each kind. In all of them the image's come
last, so that their number is all that need be known. Compiled graphs do not see any of this: use
the plain module.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rectiflow.models.frame import Backbone


def image_tokens(passed: Any, num_image: int) -> Float[Tensor, "b n d"]:
    """The image tokens of what a block takes or returns."""
    sequence: Tensor = passed if isinstance(passed, Tensor) else passed[-1]
    return sequence[:, -num_image:]


def with_image_tokens(passed: Any, num_image: int, tokens: Float[Tensor, "b m d"]) -> Any:
    """The same with other image tokens, also of another number, in place of its last `num_image`.

    It shares nothing with what was passed but the tokens of other kinds.
    """
    if not isinstance(passed, Tensor):
        return (*passed[:-1], tokens)
    return torch.cat([passed[:, :-num_image], tokens], dim=1)


@contextmanager
def watch_image_tokens(
    backbone: Backbone, block: int, num_image: int
) -> Generator[list[Float[Tensor, "b n d"]]]:
    """Yield a list that gets the image tokens after a block, by its number, at each forward pass.

    They are part of the pass's graph: a loss on them trains what is before.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, arguments: object, output: Any) -> None:
        seen.append(image_tokens(output, num_image))

    handle = backbone.blocks[block].register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def route_image_tokens(
    backbone: Backbone, first: int, last: int, kept: Int[Tensor, "b m"], num_image: int
) -> Generator[None]:
    """Let only the `kept` image tokens, by their places, pass the blocks from `first` to `last`.

    The others wait, and stand in their places again, unchanged, after `last`; that is not the
    backbone's last block, which a DiT asks for all image tokens. For one forward pass at a time.
    """
    waiting: Tensor | None = None
    num_kept = kept.shape[1]

    def leave(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal waiting
        passed, *others = arguments
        waiting = image_tokens(passed, num_image)
        chosen = waiting.gather(1, _places(kept, waiting))
        return (with_image_tokens(passed, num_image, chosen), *others)

    def rejoin(module: nn.Module, arguments: object, output: Any) -> Any:
        assert waiting is not None
        through = image_tokens(output, num_kept)
        together = waiting.to(through.dtype).scatter(1, _places(kept, through), through)
        return with_image_tokens(output, num_kept, together)

    handles = [
        backbone.blocks[first].register_forward_pre_hook(leave),
        backbone.blocks[last].register_forward_hook(rejoin),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(kept: Int[Tensor, "b m"], tokens: Float[Tensor, "b _ d"]) -> Int[Tensor, "b m d"]:
    """The places of tokens as `gather` and `scatter` read them: for each feature."""
    return kept[..., None].expand(-1, -1, tokens.shape[-1])
