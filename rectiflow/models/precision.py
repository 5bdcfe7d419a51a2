"""Which number type the matrix products run in; weights and sums always stay float32.

On both walks: training and generation ask here, so that they answer alike.
"""

from typing import Literal

import torch

from rectiflow.base.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]


def has_fast_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
