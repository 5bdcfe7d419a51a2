"""Linear maps that say what an initialisation or an optimizer must know about them.

Both are `nn.Linear` with the same tensors, so that they change no file.
"""

from __future__ import annotations

from torch import nn


class StackedLinear(nn.Linear):
    """`num_parts` maps of one input, [.. i] → [.. num_parts·part_dim], in one matrix product."""

    def __init__(self, in_dim: int, part_dim: int, *, num_parts: int = 1) -> None:
        super().__init__(in_dim, num_parts * part_dim)
        self.num_parts = num_parts


class ZeroLinear(StackedLinear):
    """A map that starts as zero: an output, a gate, or the way back into a residual stream."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
