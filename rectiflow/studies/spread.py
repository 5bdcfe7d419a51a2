"""What repeated runs say together: mean and spread over seeds, and whether two differ.

Runs of one seed share their data order and noise, so competitors compare seed by seed (a paired
comparison), which removes what the seed alone does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from rectiflow.studies.plots import Curve
from rectiflow.studies.study import Row


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean of `num` repeated measurements and their standard deviation, NaN for a single one."""

    mean: float
    std: float
    num: int

    def text(self, digits: int = 3) -> str:
        """Mean ± standard deviation, the mean alone of a single measurement."""
        if self.num == 1:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean paired difference with the half width of its confidence interval.

    The half width is infinite where there is a single pair: nothing is known of its spread.
    """

    mean: float
    half_width: float

    @property
    def is_decided(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width

    def text(self, digits: int = 3) -> str:
        """Signed mean ± half width."""
        if math.isinf(self.half_width):
            return f"{self.mean:+.{digits}f} (one seed)"
        return f"{self.mean:+.{digits}f} ± {self.half_width:.{digits}f}"


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there is nothing to average; give at least one measurement")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(mean=float(np.mean(values)), std=std, num=len(values))


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, confidence: float = 0.95
) -> Difference | None:
    """Student's interval of first − second over the seeds that both have; None without any.

    Source: the paired t-test of Student (1908).
    """
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if not differences:
        return None
    spread = spread_of(differences)
    if spread.num == 1:
        return Difference(mean=spread.mean, half_width=math.inf)
    quantile = float(student.ppf(0.5 + confidence / 2.0, spread.num - 1))
    return Difference(mean=spread.mean, half_width=quantile * spread.std / math.sqrt(spread.num))


def curve_over(rows: Sequence[Row], *, x: str, y: str) -> Curve:
    """Means of column `y` at each value of column `x`, with a band of ± one standard deviation."""
    by_x: defaultdict[float, list[float]] = defaultdict(list)
    for row in rows:
        by_x[row[x]].append(row[y])
    xs = sorted(by_x)
    spreads = [spread_of(by_x[value]) for value in xs]
    widths = [0.0 if math.isnan(spread.std) else spread.std for spread in spreads]
    return Curve(
        xs=xs,
        ys=[spread.mean for spread in spreads],
        low=[s.mean - width for s, width in zip(spreads, widths)],
        high=[s.mean + width for s, width in zip(spreads, widths)],
    )
