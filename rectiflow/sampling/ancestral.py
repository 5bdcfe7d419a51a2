"""A solver that puts new noise in the place of some of the old at each step.

What a step got wrong can be mended by later ones, since they start from noise that does not repeat
it; a picture then depends on the noise of every step. Source: arXiv 2006.11239, section 2
(ancestral sampling), with the amount of arXiv 2010.02502, equation 16, both for the line
z = (1 − t)·x0 + t·eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.sampling.solvers import FreshNoise, Memory, Solver, VelocityField


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """z' = (1 − t')·x0 + t'·(√(1 − c²)·eps + c·n), with new noise n, and c that follows from `eta`.

    x0 = z − t·v and eps = z + (1 − t)·v are what v = field(z, t) says of both. c² = eta²·(1 − r²)
    with r = ((1 − t)/t)/((1 − t')/t'): at `eta` 1 a step draws from the distribution of z' given z
    and x0, at 0 it is Euler's. The error of the samples' distribution is of order 1.

    Raises:
        ConfigError: `eta` is not in [0, 1].
    """

    order: ClassVar[int] = 1
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(
                f"eta={self.eta} must be from 0 (no new noise: euler) to 1 (as much as training's "
                "path allows)"
            )

    def first_memory(self, fresh: FreshNoise | None) -> Memory:
        """Where noise comes from, and how many steps have had theirs.

        Raises:
            ValueError: it is needed and there is none.
        """
        if fresh is None and self.eta > 0:
            raise ValueError("ancestral steps take new noise; give `integrate` a source of it")
        return fresh, 0

    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        if t_next == t:
            return z, memory
        fresh, number = memory
        velocity = field(z, t)
        x0, eps = z - t * velocity, z + (1 - t) * velocity
        r = ((1 - t) * t_next / (t * (1 - t_next))).item()
        c = self.eta * math.sqrt(max(0.0, 1 - r * r))
        if c > 0:
            eps = math.sqrt(1 - c * c) * eps + c * fresh(number).to(z)
        return (1 - t_next) * x0 + t_next * eps, (fresh, number + 1)
