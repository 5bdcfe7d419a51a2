"""What a verdict rests on: spread over seeds, differences seed by seed, wins picture by picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from rectiflow.evaluation.bootstrap import Interval, bootstrap_mean_of_strata


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds; the latter is NaN of a single one."""

    mean: float
    std: float
    num: int

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 3) -> str:
        """Mean ± standard deviation, the mean alone for a single seed."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if self.num > 1 else "")


def spread_of(values: Sequence[float]) -> Spread:
    """The spread of one value a seed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there are no values to take the spread of; give one for each seed")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(mean=float(np.mean(values)), std=std, num=len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference over `num` seeds with its confidence interval.

    The interval is unbounded where seeds tell no spread: of one seed, and of seeds that all differ
    by the same.
    """

    mean: float
    low: float
    high: float
    num: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0.0 or self.high < 0.0

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 3) -> str:
        """The mean with its interval, or with the word why there is none."""
        if self.num == 1:
            return f"{self.mean:+.{digits}f} (one seed)"
        if math.isinf(self.high):
            return f"{self.mean:+.{digits}f} (alike for {self.num} seeds)"
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"

    def describe(self, *, more: str, less: str) -> str:
        """The difference in words: `more`, `less`, or that the seeds leave it open."""
        if not self.is_clear:
            return f"{self}, which {_seeds(self.num)} not enough to call a difference"
        return f"{self}: {more if self.mean > 0 else less}"


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95
) -> Difference:
    """first − second, seed by seed, with Student's interval of the mean.

    Differences that are all alike give no interval. Scores are shares of few pictures, so that
    seeds agree to the digit by chance, and that says nothing of how far others would lie.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{len(first)} values came with {len(second)}; give both for the same seeds"
        )
    differences = np.subtract(first, second)
    num, mean = len(differences), float(np.mean(differences))
    # Equal scores leave differences that are equal but for rounding.
    rounding = 1e-9 * float(np.max(np.abs([first, second])))
    if float(np.ptp(differences)) <= rounding:
        return Difference(mean=mean, low=-math.inf, high=math.inf, num=num)
    quantile = float(student_t.ppf(0.5 + 0.5 * confidence, df=num - 1))
    half = quantile * float(np.std(differences, ddof=1)) / math.sqrt(num)
    return Difference(mean=mean, low=mean - half, high=mean + half, num=num)


def seedwise_difference(
    first: Mapping[int, float], second: Mapping[int, float]
) -> Difference | None:
    """first − second over the seeds that both have a value for; None without any."""
    common = [seed for seed in first if seed in second]
    if not common:
        return None
    return paired_difference([first[seed] for seed in common], [second[seed] for seed in common])


def sign_test(num_first: int, num_second: int) -> float:
    """The chance that pairs which differ go at least as unevenly, were either side as likely.

    `num_first` pairs went one way and `num_second` the other; pairs without a difference say
    nothing. Two-sided and exact; 1 without pairs. Source: McNemar 1947 (doi 10.1007/BF02295996).
    """
    num = num_first + num_second
    return float(binomtest(num_first, num).pvalue) if num else 1.0


@dataclass(frozen=True, kw_only=True)
class ScoredPicture:
    """A picture's score, more being better."""

    task: str
    prompt: str
    score: float


def win_rate(ours: Sequence[ScoredPicture], theirs: Sequence[ScoredPicture]) -> Interval:
    """How often our picture of a prompt scores higher than theirs, ties counted half.

    The unweighted mean over tasks, in [0, 1], with a bootstrap interval over prompts; over
    pictures in tasks whose prompts are `all_there_is`.

    Raises:
        ValueError: the pictures are not of the same prompts in the same order, or there are none.
    """
    if [(p.task, p.prompt) for p in ours] != [(p.task, p.prompt) for p in theirs]:
        raise ValueError("win rates need pictures of the same prompts in the same order")
    by_task: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for mine, other in zip(ours, theirs):
        won = 0.5 + 0.5 * float(np.sign(mine.score - other.score))
        by_task[mine.task][mine.prompt].append(won)
    groups = {task: list(prompts.values()) for task, prompts in by_task.items()}
    return bootstrap_mean_of_strata(groups, exhausted=all_there_is(groups))


def all_there_is(groups: Mapping[str, Sequence[Sequence[float]]]) -> set[str]:
    """The tasks whose prompts, a list of scores each, are no draw of many, but all.

    A benchmark asks a prompt a second time only where its task has no further ones.
    """
    return {task for task, prompts in groups.items() if max(map(len, prompts)) > 1}


def _seeds(num: int) -> str:
    return "one seed is" if num == 1 else f"{num} seeds are"
