"""Blocks that run as compiled graphs, in training and in drawing.

Block by block, not the network as a whole: blocks of one kind share a graph, so a deep network
compiles as fast as a shallow one. Compiled kernels add in another order, and in 16 bits round less
often: outputs differ in their last bits. Neither weights nor their names know of it.
Source: PyTorch's `torch.compile`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.cuda_graphs import CudaRecorder, RecordedNetwork, check_records
from rectiflow.models.frame import Backbone
from rectiflow.models.substitution import with_modules

#: Of one process: room for three kinds of blocks, times 40 buckets' shapes, times training,
#: validation and its smaller last batch. torch's own limits are too few.
MAX_GRAPHS = 512


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Let each block run as a compiled graph, made when it first meets a shape; in place.

    A shape's graph does not depend on the shapes before it, so that a run that goes on computes
    what one that never stopped does.

    Raises:
        ConfigError: as `check_compiler`.
    """
    _prepare(device)
    for block in blocks:
        # Whole, or an error: a block that falls back to running as it is would only be slow.
        block.compile(fullgraph=True, dynamic=False)


def with_compiled_blocks(backbone: Backbone, *, cuda_graphs: bool = False) -> Backbone:
    """The backbone with blocks that are compiled when they first meet a shape.

    The given one stays as it is, and all weights are shared. There is a graph for each shape, so
    that what comes out does not depend on what was computed before. With `cuda_graphs` the network
    as a whole is then recorded (`models.cuda_graphs`), which repeats the very same kernels.

    Raises:
        ConfigError: as `check_compiler`, or as `check_records`.
    """
    device = next(backbone.parameters()).device
    if cuda_graphs:
        check_records(device)
    _prepare(device)
    compiled = with_modules(backbone, {block: _compiled(block) for block in backbone.blocks})
    assert isinstance(compiled, Backbone)
    if cuda_graphs:
        # Where torch puts a module's own graph, and `with_modules` leaves it out of what it makes.
        recorded = RecordedNetwork(compiled.forward, CudaRecorder(device))
        vars(compiled)["_compiled_call_impl"] = recorded
    return compiled


def check_compiler(device: torch.device) -> None:
    """Pass if graphs can be compiled for the device, by compiling something small.

    What is missing would otherwise show only in the midst of a step.

    Raises:
        ConfigError: they cannot; the text says what is missing.
    """
    increment: Callable[[torch.Tensor], torch.Tensor] = torch.compile(lambda x: x + 1)
    try:
        increment(torch.zeros(1, device=device))
    except Exception as error:  # the compiler's errors have no class in common
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"blocks were to be compiled, but torch.compile does not work here for {device.type}: "
            f"{reason}; install a C++ compiler (such as g++) and on a GPU triton, or do not compile"
        ) from error


def _prepare(device: torch.device) -> None:
    check_compiler(device)
    # Of the whole process. Beyond the limit torch gives up with an error, never silently.
    config = torch._dynamo.config  # pyright: ignore
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, MAX_GRAPHS)


def _compiled(block: nn.Module) -> nn.Module:
    other = copy.copy(block)
    other.compile(fullgraph=True, dynamic=False)
    return other
