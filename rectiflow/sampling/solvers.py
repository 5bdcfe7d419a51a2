"""Solvers of dz/dt = field(z, t). A solver is its formula, its order and nothing else.

Source: any text on ordinary differential equations; arXiv 2403.03206 samples with Euler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

VelocityField = Callable[[Tensor, Tensor], Tensor]


class Solver(ABC):
    """One step of a method of known order."""

    order: ClassVar[int]

    @abstractmethod
    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
    ) -> Float[Tensor, "b ..."]:
        """z at `t` → z at `t_next`."""


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """z' = z + (t' − t)·field(z, t)."""

    order: ClassVar[int] = 1

    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
    ) -> Float[Tensor, "b ..."]:
        return z + (t_next - t) * field(z, t)
