"""Ranks of competitors by several metrics at once: peeled Pareto fronts, averaged over settings.

A setting is one way to sample and score every competitor. Ranks depend on who competes, so the raw
metrics are what is kept, and ranks are made from them.
Source: arXiv 2403.03206, section 5.1 (non-dominated sorting over 24 settings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class MeanRank:
    """A competitor's mean rank over settings, with the ends of its bootstrap interval.

    The mean may lie outside: the redraws' bias is taken off, and scatter makes fewer fronts.
    """

    mean: float
    low: float
    high: float


def pareto_fronts(scores: Float[np.ndarray, "n m"]) -> Int[np.ndarray, " n"]:
    """The front of each of n competitors with m metrics, of which more is better; 1 is the best.

    A front holds those that nobody left dominates: nobody is at least as good in every metric and
    better in one. Equals share a front. A competitor with a metric that is no number (its run
    diverged) comes after the last front.
    """
    is_finite = ~np.isnan(scores).any(axis=1)
    fronts = np.zeros(len(scores), dtype=np.int64)
    dominates = _dominates(scores)
    left, front = is_finite.copy(), 0
    while left.any():
        front += 1
        is_beaten = dominates[left].any(axis=0)
        best = left & ~is_beaten
        fronts[best] = front
        left &= is_beaten
    fronts[~is_finite] = front + 1
    return fronts


def mean_ranks(settings: Sequence[Float[np.ndarray, "n m"]]) -> Float[np.ndarray, " n"]:
    """The front of each competitor, averaged over settings.

    Raises:
        ValueError: there are no settings.
    """
    if not settings:
        raise ValueError("there are no settings to rank in; give the scores of at least one")
    return np.mean([pareto_fronts(scores) for scores in settings], axis=0)


def ranks_with_intervals(
    measured: Sequence[Float[np.ndarray, "n m"]],
    replicates: Sequence[Float[np.ndarray, "n r m"]],
    *,
    confidence: float = 0.95,
) -> tuple[MeanRank, ...]:
    """Mean ranks of what was measured, with intervals over bootstrap replicates.

    Each setting gives n competitors × m metrics, and the same r times with its pictures redrawn.
    Replicate k redraws alike for all competitors and settings, so that what they share (prompts,
    noise) cancels. A redraw holds some pictures twice, which moves a Fréchet distance as fewer
    pictures would; so the interval is of the ranks of replicates that are mirrored at what was
    measured (the basic bootstrap: Davison and Hinkley 1997, section 5.2.1). Competitors that lie
    closer together than the scatter have ranks that no such interval holds as often as it says.
    r replicates reach `widest_confidence(r)` at most.

    Raises:
        ValueError: there are no settings, or they differ in competitors or replicates.
    """
    means = mean_ranks(measured)
    shapes = {scores.shape[:2] for scores in replicates}
    if len(shapes) > 1:
        raise ValueError(f"settings differ in competitors or replicates: {sorted(shapes)}")
    ((_, num_replicates),) = shapes
    mirrored = [
        2.0 * scores[:, None] - redrawn
        for scores, redrawn in zip(measured, replicates, strict=True)
    ]
    redrawn = [mean_ranks([scores[:, k] for scores in mirrored]) for k in range(num_replicates)]
    tail = 0.5 * (1.0 - confidence)
    # Weibull's positions: a fresh draw falls between order statistics i and j of r with a chance
    # of (j − i)/(r + 1), however few they are.
    low, high = np.quantile(redrawn or [means], [tail, 1.0 - tail], axis=0, method="weibull")
    return tuple(
        MeanRank(mean=mean, low=lower, high=upper)
        for mean, lower, upper in zip(means.tolist(), low.tolist(), high.tolist(), strict=True)
    )


def widest_confidence(num_replicates: int) -> float:
    """The confidence of an interval from the least to the greatest of some replicates."""
    return max(0.0, (num_replicates - 1) / (num_replicates + 1))


def _dominates(scores: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, "n n"]:
    """[i, j]: i is at least as good as j in every metric, and better in one."""
    first, second = scores[:, None], scores[None]
    return np.asarray((first >= second).all(axis=2) & (first > second).any(axis=2))
