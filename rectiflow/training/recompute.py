"""Blocks that compute again in the backward pass what they did not keep of the forward one.

On the walk of a sample: applied once, in place, before the first step, before blocks are compiled
and before `sharding` cuts them. Neither weights nor their names know of it.
Source: arXiv 1604.06174; PyTorch's `torch.utils.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

#: What a block computes a second time in the backward pass, instead of keeping it: nothing; all but
#: the results of matrix products and attention; or all of itself.
Recompute = Literal["none", "products", "blocks"]

_aten = torch.ops.aten
_PRODUCTS = frozenset(
    (
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    )
)


def recompute_blocks(blocks: Iterable[nn.Module], what: Recompute) -> None:
    """Let each block keep only its inputs for the backward pass, and with "products" their results.

    The gradients are the same bits.
    """
    if what == "none":
        return
    # Blocks draw no random numbers, so there is no state of generators to bring back.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if what == "products":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    for block in blocks:
        block.forward = _recomputed(block.forward, settings)


def _recomputed(forward: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    # A function of its own: the compiler begins with it, and passes over PyTorch's.
    def forward_recomputed(*arguments: Any, **keywords: Any) -> Any:
        return checkpoint(forward, *arguments, **settings, **keywords)

    return forward_recomputed


def _keep_products(
    _context: object, operation: object, *_arguments: object, **_keywords: object
) -> CheckpointPolicy:
    if operation in _PRODUCTS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
