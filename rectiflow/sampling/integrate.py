"""The one integration loop. Whatever wants in here is a guidance, a field or a solver instead."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from rectiflow.sampling.solvers import Solver, VelocityField

OnStep = Callable[[int, Tensor, Tensor], None]


def integrate(
    field: VelocityField,
    solver: Solver,
    z: Float[Tensor, "b ..."],
    times: Float[Tensor, " n"],
    on_step: OnStep | None = None,
) -> Float[Tensor, "b ..."]:
    """Carry z from times[0] to times[-1]; `on_step(i, t_next, z)` sees each intermediate z."""
    for i in range(len(times) - 1):
        z = solver.step(field, z, times[i], times[i + 1])
        if on_step is not None:
            on_step(i, times[i + 1], z)
    return z
