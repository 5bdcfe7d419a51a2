"""Where a formulation's training stress lies: quantiles of t and of log-SNR.

A timestep sampler and a weighting act together; a run prints and keeps what they amount to.
Source: arXiv 2403.03206, section 3.1 (equation 18).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rectiflow.flow.formulation import Formulation
from rectiflow.flow.shift import NO_SHIFT, ResolutionShift

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_NUM_POINTS = 20_000


@dataclass(frozen=True, kw_only=True)
class Emphasis:
    """Quantiles at `levels` of the times as drawn, and of the times as their errors count.

    `t_weighted` is drawn times multiplied by the weighting; equal to `t_drawn` without one.
    `log_snr_weighted` belongs to `t_weighted`, so it falls.
    """

    formulation: str
    levels: tuple[float, ...]
    t_drawn: tuple[float, ...]
    t_weighted: tuple[float, ...]
    log_snr_weighted: tuple[float, ...]

    def __str__(self) -> str:
        def spread(values: tuple[float, ...]) -> str:
            return f"{values[len(values) // 2]:.2f} ({values[0]:.2f} to {values[-1]:.2f})"

        return (
            f"{self.formulation}: trains on t = {spread(self.t_weighted)}, "
            f"log-SNR = {spread(self.log_snr_weighted)}; median and the middle 90 %"
        )


def emphasis_of(formulation: Formulation, shift: ResolutionShift = NO_SHIFT) -> Emphasis:
    """The quantiles after the shift, from an even grid of the sampler's own quantiles."""
    u = (torch.arange(_NUM_POINTS, dtype=torch.float64) + 0.5) / _NUM_POINTS
    t = shift.along(formulation.path, formulation.timesteps.from_uniform(u))
    at = formulation.path.coefficients(t)
    weight = formulation.weighting.weight(t, at, formulation.prediction)
    t_weighted = _quantiles(t, weight)
    return Emphasis(
        formulation=str(formulation),
        levels=LEVELS,
        t_drawn=_rounded(_quantiles(t, torch.ones_like(t))),
        t_weighted=_rounded(t_weighted),
        log_snr_weighted=_rounded(formulation.path.log_snr(t_weighted)),
    )


def _quantiles(t: Tensor, weight: Tensor) -> Tensor:
    """The values of rising `t` below which the given shares of the weight lie."""
    total = weight.cumsum(0)
    levels = torch.tensor(LEVELS, dtype=total.dtype) * total[-1]
    return t[torch.searchsorted(total, levels)]


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in values.tolist())
