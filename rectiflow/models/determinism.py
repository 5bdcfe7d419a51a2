"""Kernels that give the same bits each time, on GPUs too.

Beside both walks. On a CPU they do so anyway. On a GPU some add in whatever order their threads
come, and the faster of two kernels may be another each time. Source: PyTorch, "Reproducibility".
"""

import os

import torch

from rectiflow.base.errors import ConfigError

#: What cuBLAS needs to have one order of sums; it reads this when it starts.
_WORKSPACE, _FIXED_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def compute_deterministically() -> None:
    """Let this process use such kernels alone, from now on; it comes before the GPU's first use.

    On one kind of GPU and with one version of the software a drawing, and a run with any
    interruptions, then have the same bits each time. An operation that knows no such kernel raises
    RuntimeError, with its name, when it is met.

    Raises:
        ConfigError: the GPU is in use already, or the environment asks cuBLAS for something else.
    """
    asked = os.environ.get(_WORKSPACE)
    if asked is not None and asked not in _FIXED_WORKSPACES:
        raise ConfigError(
            f"{_WORKSPACE} is {asked!r}, with which cuBLAS adds in any order; unset it, or give "
            f"one of {', '.join(_FIXED_WORKSPACES)}"
        )
    if asked is None and torch.cuda.is_initialized():
        raise ConfigError(
            "the GPU has been used before deterministic kernels were asked for; ask first, or set "
            f"{_WORKSPACE}={_FIXED_WORKSPACES[0]} for the whole process"
        )
    os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACES[0])
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written, so none needs to be filled.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = False
