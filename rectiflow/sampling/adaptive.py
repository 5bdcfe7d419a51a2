"""A solver that chooses its steps: as many as a tolerance asks for.

Source: Dormand and Prince (1980), the pair of orders 5 and 4; step control as in Hairer, Nørsett
and Wanner, *Solving Ordinary Differential Equations I*, section II.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.sampling.solvers import Memory, RungeKutta, VelocityField, weighted_sum

#: Steps between two times of the grid, refused ones included, after which a solver gives up.
MAX_STEPS = 1000
#: A new step is so much shorter than the longest that would pass, and changes at most so much.
SAFETY, LEAST_FACTOR, GREATEST_FACTOR = 0.9, 0.2, 10.0


@dataclass(frozen=True, kw_only=True)
class DormandPrince(RungeKutta):
    """Order 5 with an error estimate of order 4; takes its own steps from each time to the next.

    A step passes if the root mean square of error/(tolerance·(1 + |z|)), over all of the batch,
    is at most 1; |z| is the greater of before and after. The grid's times are where it must
    stop, so a coarse grid leaves it free; each costs one evaluation more.
    """

    order: ClassVar[int] = 5
    couples_samples: ClassVar[bool] = True
    nodes = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
    rows = (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    # The last row again: its slope is the next step's first.
    weights = (*rows[-1], 0.0)
    #: Weights of order 5 less those of order 4.
    error_weights: ClassVar[tuple[float, ...]] = (
        71 / 57600,
        0.0,
        -71 / 16695,
        71 / 1920,
        -17253 / 339200,
        22 / 525,
        -1 / 40,
    )

    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise ConfigError(
                f"tolerance={self.tolerance} must be a positive number; 0.01 to 0.00001 is usual"
            )

    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        """The memory is the length of the next step, at first the whole way.

        Raises:
            UserError: the tolerance is not reached in `MAX_STEPS` steps.
        """
        if t_next == t:
            return z, memory
        length = t - t_next if memory is None else memory
        first = field(z, t)
        for _ in range(MAX_STEPS):
            end = torch.maximum(t - length, t_next)
            slopes = self.slopes(field, z, t, end, first=first)
            proposed = z + (end - t) * weighted_sum(self.weights, slopes)
            error = self._error(z, proposed, (end - t) * weighted_sum(self.error_weights, slopes))
            # What is not finite passes too: the loop over steps tells it.
            has_passed = not error > 1.0
            length = (t - end) * _factor(error)
            if has_passed:
                z, t, first = proposed, end, slopes[-1]
            if t == t_next:
                return z, length
        raise UserError(
            f"tolerance={self.tolerance:g} was not reached in {MAX_STEPS} steps from t = "
            f"{t.item():.4g} on; give a greater one, or compute in float32"
        )

    def _error(self, z: Tensor, proposed: Tensor, difference: Tensor) -> float:
        scale = self.tolerance * (1.0 + torch.maximum(z.abs(), proposed.abs()))
        return (difference / scale).square().mean().sqrt().item()


def _factor(error: float) -> float:
    """How much longer the next step may be: the error goes with its fifth power."""
    if not error > 0.0:
        return GREATEST_FACTOR
    return min(GREATEST_FACTOR, max(LEAST_FACTOR, SAFETY * error ** (-1 / DormandPrince.order)))
