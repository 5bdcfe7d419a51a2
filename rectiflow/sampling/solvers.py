"""Solvers of dz/dt = field(z, t). A solver is its formula, its order and nothing else.

Here those that forget each step when it is done; `multistep` and `adaptive` hold the others.
Source: any text on ordinary differential equations; arXiv 2403.03206 samples with Euler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

VelocityField = Callable[[Tensor, Tensor], Tensor]
#: What a solver carries from one step to the next; each has its own.
Memory: TypeAlias = Any
#: Standard normal noise shaped as z, other for each number from 0 on.
FreshNoise = Callable[[int], Tensor]


class Solver(ABC):
    """A method of known order, step by step."""

    order: ClassVar[int]
    #: Whether a sample's steps depend on the others of its batch.
    couples_samples: ClassVar[bool] = False

    def first_memory(self, fresh: FreshNoise | None) -> Memory:
        """What the first step is to remember: nothing, unless a solver has use for noise."""
        return None

    @abstractmethod
    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        """z at `t` → z at `t_next` ≤ t, and what the next step is to remember."""


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
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        return z + (t_next - t) * field(z, t), None


class RungeKutta(Solver):
    """k_i = field(z + h·Σ_j rows[i][j]·k_j, t + nodes[i]·h), z' = z + h·Σ_i weights[i]·k_i.

    A method is its Butcher tableau: `nodes`, `rows` below the diagonal, `weights`; h = t' − t.
    """

    nodes: ClassVar[tuple[float, ...]]
    rows: ClassVar[tuple[tuple[float, ...], ...]]
    weights: ClassVar[tuple[float, ...]]

    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        slopes = self.slopes(field, z, t, t_next, first=field(z, t))
        return z + (t_next - t) * weighted_sum(self.weights, slopes), None

    def slopes(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        *,
        first: Float[Tensor, "b ..."],
    ) -> list[Float[Tensor, "b ..."]]:
        """All k_i; `first` is k_0 = field(z, t)."""
        h, slopes = t_next - t, [first]
        for node, row in zip(self.nodes[1:], self.rows[1:], strict=True):
            # t + h may miss t' by its last bit, and with it an end of the grid.
            at = t_next if node == 1.0 else t + node * h
            slopes.append(field(z + h * weighted_sum(row, slopes), at))
        return slopes


@dataclass(frozen=True, kw_only=True)
class Heun(RungeKutta):
    """The mean of the slopes at both ends of an Euler step: the trapezoidal rule, explicit."""

    order: ClassVar[int] = 2
    nodes = (0.0, 1.0)
    rows = ((), (1.0,))
    weights = (1 / 2, 1 / 2)


@dataclass(frozen=True, kw_only=True)
class Midpoint(RungeKutta):
    """z' = z + h·field(z + h/2·field(z, t), t + h/2); never evaluates at the end of a step."""

    order: ClassVar[int] = 2
    nodes = (0.0, 1 / 2)
    rows = ((), (1 / 2,))
    weights = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class RK4(RungeKutta):
    """The classical Runge–Kutta method: two slopes in the middle, one at each end."""

    order: ClassVar[int] = 4
    nodes = (0.0, 1 / 2, 1 / 2, 1.0)
    rows = ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0))
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def weighted_sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Float[Tensor, "b ..."]:
    """Σ weights[i]·slopes[i], without those of weight zero."""
    return torch.stack([w * k for w, k in zip(weights, slopes, strict=True) if w]).sum(dim=0)
