"""The one integration loop. Whatever wants in here is a guidance, a field or a solver instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import DivergedError
from rectiflow.sampling.solvers import FreshNoise, Solver, VelocityField

#: Sees (i, t_next, z) after step i, and may give another z to go on with.
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]

#: Latents have variance 1; from here on a step was too long or guidance too strong.
LARGE = 100.0


def integrate(
    field: VelocityField,
    solver: Solver,
    z: Float[Tensor, "b ..."],
    times: Float[Tensor, " n"],
    on_step: OnStep | None = None,
    *,
    fresh: FreshNoise | None = None,
    places: Sequence[int] | None = None,
) -> Float[Tensor, "b ..."]:
    """Carry z from times[0] to times[-1]; `on_step(i, t_next, z)` sees, or replaces, each z.

    A solver that adds noise has it from `fresh`. An error tells rows by their `places` among the
    caller's samples, or by their number.

    Raises:
        DivergedError: z is not finite after a step; the text says which, and the likely cause.
    """
    memory = solver.first_memory(fresh)
    for i in range(len(times) - 1):
        before = z
        z, memory = solver.step(field, z, times[i], times[i + 1], memory)
        if not torch.isfinite(z).all():
            rows = (~torch.isfinite(z.flatten(1))).any(dim=1).nonzero().flatten().tolist()
            samples = {row if places is None else places[row] for row in rows}
            raise DivergedError(_describe(i, sorted(samples), before, times))
        if on_step is not None and (other := on_step(i, times[i + 1], z)) is not None:
            z = other
    return z


def _describe(i: int, samples: Sequence[int], before: Tensor, times: Tensor) -> str:
    """What has happened at step i, and why it probably has."""
    largest = before.abs().max().item()
    if not torch.isfinite(before).all():
        cause = "they were not before either: the noise, or what it was mixed with, is damaged"
    elif largest > LARGE:
        cause = (
            f"they had grown to {largest:.3g} before, so the steps run away: lower the guidance "
            "or take more steps"
        )
    else:
        cause = (
            f"they were at most {largest:.3g} before, so the network put it out: its weights hold "
            "such values, or it overflows in half precision (compute in float32 or bfloat16)"
        )
    return (
        f"latents of sample {', '.join(map(str, samples))} are not finite after step {i + 1} of "
        f"{len(times) - 1} (t = {times[i].item():.4g} to {times[i + 1].item():.4g}); {cause}"
    )


def evaluation_times(solver: Solver, times: Float[Tensor, " n"]) -> list[Float[Tensor, ""]]:
    """Where a solver whose steps depend on times alone evaluates the field, in order."""
    seen: list[Tensor] = []

    def field(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.zeros_like(z)

    z = torch.zeros(1, 1, device=times.device)
    integrate(field, solver, z, times, fresh=lambda _: z)
    return seen


class CountedField:
    """A field that counts its evaluations, each of all samples of a batch at once."""

    def __init__(self, field: VelocityField) -> None:
        self._field = field
        self.num_evaluations = 0

    def __call__(self, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]) -> Float[Tensor, "b ..."]:
        self.num_evaluations += 1
        return self._field(z, t)
