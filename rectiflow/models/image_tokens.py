"""A backbone's image tokens between its blocks, seen from outside; backbones do not know of it.

Blocks pass on one sequence or several: a UViT's and a CrossDiT's the image tokens alone, a DiT's
text and image tokens joined, an MM-DiT's a stream of each kind. In all of them the image's come
last, so that their number is all that need be known. Compiled graphs do not see any of this: use
the plain module.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.frame import Backbone


def image_tokens(passed: Any, num_image: int) -> Float[Tensor, "b n d"]:
    """The image tokens of what a block takes or returns."""
    sequence: Tensor = passed if isinstance(passed, Tensor) else passed[-1]
    return sequence[:, -num_image:]


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
