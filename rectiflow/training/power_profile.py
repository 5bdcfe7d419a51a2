"""Averages of the weights whose length grows with the run, and any of them out of a few others.

Beside the walk of a sample: `ema` keeps such averages, `post_hoc` makes further ones.
Source: arXiv 2312.02696, section 3.1 (power-function profiles) and appendix C (least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from rectiflow.base.errors import ConfigError

#: Just below that of gamma = 0, where every step counts alike: 1/√12.
LARGEST_SIGMA_REL = 0.288
# Singular values below it, relative to the largest, are those of snapshots that say the same.
_LEAST_SINGULAR_VALUE = 1e-12


@dataclass(frozen=True)
class PowerProfile:
    """The average whose weights over the steps tau in [0, t] are those of tau^gamma.

    `sigma_rel`, above 0 and at most `LARGEST_SIGMA_REL`, is the weights' standard deviation
    relative to t: the length of the average as a share of the run so far, about.
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_rel <= LARGEST_SIGMA_REL:
            raise ConfigError(
                f"sigma_rel is {self.sigma_rel}; it is the length of an average relative to the "
                f"run's, so give a number above 0 and at most {LARGEST_SIGMA_REL}, such as 0.1"
            )

    @cached_property
    def gamma(self) -> float:
        """The exponent, above 0.

        sigma_rel² = (gamma + 1) / ((gamma + 2)² (gamma + 3)), a cubic equation.
        """
        rest = self.sigma_rel**-2
        return float(np.roots([1.0, 7.0, 16.0 - rest, 12.0 - rest]).real.max())

    def decay_at(self, num_updates: int) -> float:
        """The weight of the old average in update number `num_updates` (counted from 0).

        (1 − 1/t)^(gamma + 1) with t = num_updates + 1. Then step i has the weight of tau^gamma from
        i − 1 to i, so that all that holds of the function holds of the sum.
        """
        return (1.0 - 1.0 / (num_updates + 1)) ** (self.gamma + 1.0)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """The sum of averages with `coefficients`, which add up to 1, that is nearest to another one.

    `error` is the distance of the two averages' weights over the steps, relative to the length of
    the wanted ones: root sums of squares.
    """

    coefficients: Float64[np.ndarray, " k"]
    error: float


def overlap(a: PowerProfile, t_a: float, b: PowerProfile, t_b: float) -> float:
    """∫ p_a(tau) p_b(tau) dtau of the averages' weights after t_a and t_b steps."""
    if t_a > t_b:
        a, t_a, b, t_b = b, t_b, a, t_a
    # (ga + 1)(gb + 1) / (ga + gb + 1) · ta^gb / tb^(gb + 1)
    factor = (a.gamma + 1.0) * (b.gamma + 1.0) / (a.gamma + b.gamma + 1.0)
    return factor * (t_a / t_b) ** b.gamma / t_b


def combine(
    kept: Sequence[tuple[PowerProfile, int]], wanted: PowerProfile, step: int
) -> Combination:
    """`wanted` after `step` steps, from profiles that were kept after some steps each.

    Coefficients that add up to 1 leave alone what the weights have in common at all steps, so that
    only their movement is subject to the error.
    """
    gram = np.array([[overlap(*a, *b) for b in kept] for a in kept])
    wanted_by_kept = np.array([overlap(*a, wanted, step) for a in kept])
    square = overlap(wanted, step, wanted, step)
    # The least of |sum − wanted|², by a Lagrange multiplier; all averages scaled to length 1.
    scale = np.diag(gram) ** -0.5
    system = np.block([[gram * np.outer(scale, scale), scale[:, None]], [scale, np.zeros(1)]])
    solution = np.linalg.lstsq(
        system, np.append(wanted_by_kept * scale, 1.0), rcond=_LEAST_SINGULAR_VALUE
    )[0]
    coefficients = solution[:-1] * scale
    rest = coefficients @ gram @ coefficients - 2.0 * coefficients @ wanted_by_kept + square
    return Combination(coefficients=coefficients, error=float(max(rest, 0.0) / square) ** 0.5)
