"""Linear maps: in the type of their input, and what initialisation and optimizer must know of them.

All are `nn.Linear` with the same tensors, so that they change no file.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def multiply(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "*b o"]:
    """x·weightᵀ + bias in the type of x, or in autocast's.

    Weights may be held in a narrower type than they are multiplied in: half the memory, on a
    processor that would have to emulate the narrow product.
    """
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
        bias = bias if bias is None else bias.to(x.dtype)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`multiply` with weights of its own."""

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return multiply(input, self.weight, self.bias)


class StackedLinear(Linear):
    """`num_parts` maps of one input, [.. i] → [.. num_parts·part_dim], in one matrix product."""

    def __init__(self, in_dim: int, part_dim: int, *, num_parts: int = 1) -> None:
        super().__init__(in_dim, num_parts * part_dim)
        self.num_parts = num_parts


class ZeroLinear(StackedLinear):
    """A map that starts as zero: an output, a gate, or the way back into a residual stream."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
