"""Bootstrap intervals: how far a benchmark's mean could move by the draw of its prompts.

Pictures of one prompt succeed and fail together, so whole prompts are resampled (Efron and
Tibshirani 1993, chapter 8: the unit that was drawn is the unit that is redrawn). A task may have so
few prompts that all of them were asked: nothing was drawn then but pictures. NumPy only; used by
every score of `evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rectiflow.base.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean in [0, 1] with the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap_mean(
    groups: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the mean over groups (prompts), each a list of values (pictures) in [0, 1].

    Every group weighs the same. Raises ValueError without groups or with an empty one.
    """
    return bootstrap_mean_of_strata(
        {"all": groups}, seed=seed, num_resamples=num_resamples, confidence=confidence
    )


def bootstrap_mean_of_strata(
    strata: Mapping[str, Sequence[Sequence[float]]],
    *,
    exhausted: Collection[str] = (),
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the unweighted mean of the strata's means; prompts are redrawn inside their task.

    In the strata named `exhausted` the groups are all that there are, not a draw of them, and a
    handful may be too few to resample. There values are redrawn, whichever group they are of, which
    is cautious: that also counts how the groups differ.

    Percentile interval of the resampled means, widened by sqrt(n / (n - 1)) about the mean because
    a resample of n values varies less than a fresh draw. Where no resample can differ (all that is
    redrawn scored alike, usually all 0 or all 1) the bootstrap is blind and Wilson's interval
    (1927) for that many draws takes its place; so it does for the verdicts, 0 or 1, of a single
    stratum, whose percentile intervals are too short near both ends.

    Raises:
        ValueError: no strata, a stratum without groups, a group without values, values outside
            [0, 1], or a confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    means = {name: _group_means(name, groups) for name, groups in strata.items()}
    if not means:
        raise ValueError("there are no values to resample; give at least one stratum")
    mean = float(np.mean([values.mean() for values in means.values()]))
    redrawn = {
        name: np.concatenate([np.asarray(group, dtype=np.float64) for group in strata[name]])
        if name in exhausted
        else values
        for name, values in means.items()
    }
    values = list(redrawn.values())
    is_blind = all(float(np.ptp(some)) == 0.0 for some in values)
    if is_blind or (len(values) == 1 and bool(np.isin(values[0], (0.0, 1.0)).all())):
        return wilson_interval(mean, sum(map(len, values)), confidence=confidence)
    deviation = np.zeros(num_resamples)
    for name, values in redrawn.items():
        n = len(values)
        drawn = numpy_generator(seed, "bootstrap", name).integers(0, n, size=(num_resamples, n))
        widening = math.sqrt(n / (n - 1)) if n > 1 else 1.0
        deviation += widening * (values[drawn].mean(axis=1) - values.mean()) / len(redrawn)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(mean + deviation, [tail, 1.0 - tail])
    return Interval(mean=mean, low=max(0.0, float(low)), high=min(1.0, float(high)))


def wilson_interval(mean: float, count: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share `mean` seen in `count` independent trials."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    shrunk = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return Interval(
        mean=mean, low=max(0.0, min(mean, shrunk - half)), high=min(1.0, max(mean, shrunk + half))
    )


def _group_means(name: str, groups: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    if not groups or any(len(values) == 0 for values in groups):
        raise ValueError(f"stratum {name!r} has no values; every group needs at least one")
    means = np.array([float(np.mean(values)) for values in groups], dtype=np.float64)
    if not bool(np.all((means >= 0.0) & (means <= 1.0))):
        raise ValueError(f"stratum {name!r} has scores outside [0, 1]; give shares or 0/1 verdicts")
    return means
