"""How the blocks of a training model run: recomputed in the backward pass, compiled. In place.

On the walk of a sample: applied once, before the first step and before `sharding` cuts the blocks,
in this order: recompute, compile, shard. Neither weights nor their names know of it.
Source: arXiv 1604.06174 (recompute); PyTorch's `torch.utils.checkpoint` and `torch.compile`.
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

from rectiflow.base.errors import ConfigError

#: What a block computes a second time in the backward pass, instead of keeping it: nothing; all but
#: the results of matrix products and attention; or all of itself.
Recompute = Literal["none", "products", "blocks"]

# One compiled code serves all blocks of a kind; each kind needs one for each of training and
# validation, and again where buckets change the shapes.
_NUM_KINDS_OF_GRAPH = 64

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


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Let each block run as one compiled graph, made when it is first called.

    Sums are rounded otherwise than without, as fused operations keep more digits.

    Raises:
        ConfigError: this machine cannot compile for `device`.
    """
    _refuse_without_compiler(device)
    torch._dynamo.config.recompile_limit = _NUM_KINDS_OF_GRAPH  # pyright: ignore[reportPrivateUsage]
    for block in blocks:
        # Whole, or an error: a block that falls back to running as it is would only be slow.
        block.compile(fullgraph=True)


def _refuse_without_compiler(device: torch.device) -> None:
    """Compile something small, as what is missing would show only in the midst of a step."""
    increment: Callable[[torch.Tensor], torch.Tensor] = torch.compile(lambda x: x + 1)
    try:
        increment(torch.zeros(1, device=device))
    except Exception as error:  # the compiler's errors have no class in common
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"compile_blocks is set, but torch.compile does not work here for {device.type}: "
            f"{reason}; install a C++ compiler (such as g++) and on a GPU triton, or leave "
            "compile_blocks out"
        ) from error
