"""A backbone whose blocks run as compiled graphs, for drawing.

Block by block, not as a whole: blocks of one kind share a graph, so a deep network compiles as fast
as a shallow one.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.frame import Backbone
from rectiflow.models.substitution import with_modules

#: Kinds of blocks times shapes that they are met with; torch's own 8 are too few for two sizes.
MAX_GRAPHS = 64


def compile_blocks(backbone: Backbone) -> Backbone:
    """The backbone with blocks that are compiled when they first meet a shape.

    The given one stays as it is, and all weights are shared. Compiled kernels add in another order,
    and in 16 bits round less often: outputs differ in their last bits.

    Raises:
        ConfigError: there is no compiler for the device.
    """
    check_compiler(next(backbone.parameters()).device)
    # Of the whole process. Beyond the limit torch gives up with an error, never silently.
    config = torch._dynamo.config  # pyright: ignore
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    compiled = with_modules(backbone, {block: _compiled(block) for block in backbone.blocks})
    assert isinstance(compiled, Backbone)
    return compiled


def check_compiler(device: torch.device) -> None:
    """Pass if graphs can be compiled for the device.

    Raises:
        ConfigError: they cannot; the text says what is missing.
    """
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError("compiling for a GPU needs Triton; install it, or do not compile")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compiling for a CPU needs a C++ compiler, and there is none; install g++ or clang++, "
            "or do not compile"
        ) from error


def _compiled(block: nn.Module) -> nn.Module:
    other = copy.copy(block)
    # A graph for each shape, so that a picture's bits do not depend on what was drawn before.
    other.compile(fullgraph=True, dynamic=False)
    return other
