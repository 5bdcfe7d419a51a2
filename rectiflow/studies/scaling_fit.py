"""Scaling laws of a study's runs, tested on its largest size, which the fit does not see.

Source: arXiv 2403.03206, section 5.3.3 (loss against size and steps); the laws' form is that of
arXiv 2203.15556, appendix D.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rectiflow.studies.comparison import spread_of
from rectiflow.studies.scaling_law import (
    Quantiles,
    ScalingLaw,
    fit_law,
    frontier,
    quantiles,
    redraws,
)
from rectiflow.studies.study import Row

NUM_REDRAWS = 100
#: Sizes that a fit must see.
LEAST_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class LawTrial:
    """A law of all sizes but the largest, and what it says of that one's last checkpoint."""

    formula: str
    law: ScalingLaw
    num_points: int
    exponents: tuple[Quantiles, ...]
    predicted: Quantiles
    measured: float

    @property
    def error(self) -> float:
        """Predicted over measured loss, minus one."""
        return self.predicted.value / self.measured - 1.0


def try_laws(looks: Sequence[Row]) -> tuple[LawTrial, ...]:
    """The law in parameters and data, and that of the compute frontier.

    None of them where fewer than `LEAST_SIZES` sizes are left to fit; one is left out where its
    points do not fix it.
    """
    largest = max(row["depth"] for row in looks)
    seen = [row for row in looks if row["depth"] != largest]
    if len({row["depth"] for row in seen}) < LEAST_SIZES:
        return ()
    last = max(row["step"] for row in looks)
    unseen = [row for row in looks if row["depth"] == largest and row["step"] == last]
    found = (
        _tested("E + A·N^−α + B·D^−β", ("parameters", "num_images"), seen, unseen, _all_of),
        _tested("E + A·C^−α", ("train_flops",), seen, unseen, _frontier_of),
    )
    return tuple(law for law in found if law is not None)


def _tested(
    formula: str,
    columns: tuple[str, ...],
    seen: Sequence[Row],
    unseen: Sequence[Row],
    choose: Callable[[Sequence[Row]], Sequence[Row]],
) -> LawTrial | None:
    chosen = choose(seen)
    if not unseen or len(chosen) < 2 * len(columns) + 1:
        return None
    law = _fit(columns, chosen)
    target = _scales(columns, unseen[:1])
    others: list[ScalingLaw] = []
    runs, sizes = [row["cell"] for row in seen], [row["depth"] for row in seen]
    for rows in redraws(runs, sizes, least_sizes=LEAST_SIZES, num=NUM_REDRAWS):
        redrawn = choose([seen[place] for place in rows.tolist()])
        if len(redrawn) >= 2 * len(columns) + 1:
            others.append(_fit(columns, redrawn, near=law))
    return LawTrial(
        formula=formula,
        law=law,
        num_points=len(chosen),
        exponents=tuple(
            quantiles(value, [other.exponents[j] for other in others])
            for j, value in enumerate(law.exponents)
        ),
        predicted=quantiles(
            law.loss(target).item(), [other.loss(target).item() for other in others]
        ),
        measured=spread_of([row["ema_loss"] for row in unseen]).mean,
    )


def _fit(
    columns: tuple[str, ...], rows: Sequence[Row], *, near: ScalingLaw | None = None
) -> ScalingLaw:
    losses = np.array([row["ema_loss"] for row in rows])
    return fit_law(_scales(columns, rows), losses, near=near)


def _scales(columns: tuple[str, ...], rows: Sequence[Row]) -> Float[np.ndarray, "n k"]:
    return np.array([[float(row[column]) for column in columns] for row in rows])


def _all_of(rows: Sequence[Row]) -> Sequence[Row]:
    return rows


def _frontier_of(rows: Sequence[Row]) -> Sequence[Row]:
    places = frontier([row["train_flops"] for row in rows], [row["ema_loss"] for row in rows])
    return [rows[place] for place in places]
