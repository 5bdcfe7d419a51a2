"""Curves of means over repeated runs, with bands that show how far these lie apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rectiflow.studies.comparison import spread_of
from rectiflow.studies.plots import Curve
from rectiflow.studies.study import Row


def curve_over(rows: Sequence[Row], *, x: str, y: str) -> Curve:
    """Means of column `y` at each value of column `x`, with a band of ± one standard deviation.

    Where there is one value, the band is as thin as the line.
    """
    by_x: defaultdict[float, list[float]] = defaultdict(list)
    for row in rows:
        by_x[row[x]].append(row[y])
    xs = sorted(by_x)
    spreads = [spread_of(by_x[value]) for value in xs]
    widths = [spread.std if spread.num > 1 else 0.0 for spread in spreads]
    return Curve(
        xs=xs,
        ys=[spread.mean for spread in spreads],
        low=[spread.mean - width for spread, width in zip(spreads, widths)],
        high=[spread.mean + width for spread, width in zip(spreads, widths)],
    )
