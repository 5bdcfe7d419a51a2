"""Which number type the matrix products run in; weights and sums always stay float32.

On both walks: training and generation ask here, so that they answer alike.
"""

import platform
from typing import Literal

import torch

from rectiflow.base.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]
#: What frozen weights may be held in, by name.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def has_fast_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware.

    oneDNN's own check, which is right elsewhere, also says yes on every x86 processor with
    AVX-512, where it emulates: there bfloat16 products take four times as long as float32's.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        has_avx512 = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
        has_amx = torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
        return has_avx512 or has_amx
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def usable_device(name: str) -> torch.device:
    """The device of that name, such as "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: there is none, or this PyTorch cannot use it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without memory, meta, has no numbers
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used here: {reason}; give cpu, or cuda on a machine that "
            "has a GPU and a PyTorch for it"
        ) from error
    return device


def compute_dtype(precision: Precision, device: torch.device | str = "cpu") -> torch.dtype:
    """The type that `precision` means on this processor: torch.bfloat16 or torch.float32.

    Raises:
        ConfigError: "bf16" was asked of a processor without bfloat16 instructions.
    """
    if precision == "fp32":
        return torch.float32
    if has_fast_bf16(device):
        return torch.bfloat16
    if precision == "bf16":
        raise ConfigError(
            "precision is bf16, but this processor has no bfloat16 matrix instructions; "
            "use precision auto or fp32"
        )
    return torch.float32


def autocast(precision: Precision, device: torch.device | str = "cpu") -> torch.autocast:
    """A context whose matrix products run in `compute_dtype`; raises as that does."""
    dtype = compute_dtype(precision, device)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)
