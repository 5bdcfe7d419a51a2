"""Intervals cover a planted truth as often as they claim, and follow prompts, not pictures."""

from __future__ import annotations

import numpy as np
import pytest

from rectiflow.evaluation.bootstrap import (
    Interval,
    bootstrap_mean,
    bootstrap_mean_of_strata,
    wilson_interval,
)


def _coverage(draw, truth: float, *, trials: int = 250) -> float:
    hits = 0
    for trial in range(trials):
        interval = draw(np.random.default_rng(trial))
        hits += interval.low <= truth <= interval.high
    return hits / trials


def test_covers_a_planted_share_with_correlated_pictures() -> None:
    """Four pictures a prompt, whose chance of success is the prompt's own: Beta(1, 1), mean 0.5."""

    def draw(rng: np.random.Generator) -> Interval:
        chance = rng.beta(1.0, 1.0, size=40)
        return bootstrap_mean(
            [list((rng.random(4) < p).astype(float)) for p in chance], num_resamples=300
        )

    assert 0.91 <= _coverage(draw, 0.5) <= 0.98


@pytest.mark.parametrize("share", [0.04, 0.06, 0.1])
def test_covers_a_share_near_zero(share: float) -> None:
    """Where percentiles of redrawn verdicts are too short: 86 of 100 at 0.06."""

    def draw(rng: np.random.Generator) -> Interval:
        return bootstrap_mean([[float(rng.random() < share)] for _ in range(50)])

    assert _coverage(draw, share, trials=1000) >= 0.92


def test_more_hits_never_end_lower() -> None:
    hits = [bootstrap_mean([[float(i < n)] for i in range(50)]) for n in range(51)]
    assert [h.high for h in hits] == sorted(h.high for h in hits)
    assert [h.low for h in hits] == sorted(h.low for h in hits)


def test_covers_the_mean_of_seven_tasks() -> None:
    truths = [0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95]

    def draw(rng: np.random.Generator) -> Interval:
        strata = {str(p): [[float(rng.random() < p)] for _ in range(30)] for p in truths}
        return bootstrap_mean_of_strata(strata, num_resamples=300)

    assert 0.91 <= _coverage(draw, float(np.mean(truths))) <= 0.98


def test_resampling_pictures_would_be_too_narrow() -> None:
    """Ten copies of each verdict are no more evidence than one."""
    rng = np.random.default_rng(0)
    verdicts = [float(value) for value in rng.random(50) < 0.5]
    once = bootstrap_mean([[v] for v in verdicts])
    tenfold = bootstrap_mean([[v] * 10 for v in verdicts])
    assert tenfold == once


def test_covers_the_truth_of_the_few_prompts_that_there_are() -> None:
    """All prompts were asked, some with a picture more than others: pictures are what was drawn."""
    chances = (0.1, 0.6)

    def strata(rng: np.random.Generator) -> dict[str, list[list[float]]]:
        few = [list((rng.random(20 + i) < p).astype(float)) for i, p in enumerate(chances)]
        return {"few": few, "many": [[float(rng.random() < 0.5)] for _ in range(40)]}

    def coverage(truth: float, names: tuple[str, ...], exhausted: set[str]) -> float:
        def draw(rng: np.random.Generator) -> Interval:
            drawn = {name: groups for name, groups in strata(rng).items() if name in names}
            return bootstrap_mean_of_strata(drawn, exhausted=exhausted, num_resamples=300)

        return _coverage(draw, truth)

    truth = float(np.mean(chances))
    assert coverage((truth + 0.5) / 2, ("few", "many"), {"few"}) >= 0.93
    assert coverage(truth, ("few",), {"few"}) >= 0.93


def test_alike_means_of_exhausted_prompts_still_vary() -> None:
    halves = {"few": [[0.0, 1.0]] * 3}
    interval = bootstrap_mean_of_strata(halves, exhausted={"few"})
    assert interval.mean == 0.5
    assert 0.5 < interval.high - interval.low < 1.0
    unanimous = bootstrap_mean_of_strata({"few": [[1.0] * 10] * 2}, exhausted={"few"})
    assert unanimous == wilson_interval(1.0, 20)


def test_every_task_weighs_the_same() -> None:
    strata = {"few": [[1.0], [1.0]], "many": [[0.0]] * 98}
    assert bootstrap_mean_of_strata(strata).mean == 0.5


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_unanimous_verdicts_still_have_a_width(verdict: float) -> None:
    interval = bootstrap_mean([[verdict]] * 20)
    assert interval.mean == verdict
    assert 0.1 < interval.high - interval.low < 0.2
    assert interval.low <= verdict <= interval.high


def test_wilson_equals_the_textbook() -> None:
    interval = wilson_interval(0.5, 10)
    assert (interval.low, interval.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_same_seed_same_interval() -> None:
    groups = [[value] for value in np.random.default_rng(0).random(30).tolist()]
    assert bootstrap_mean(groups, seed=1) == bootstrap_mean(groups, seed=1)
    assert bootstrap_mean(groups, seed=1) != bootstrap_mean(groups, seed=2)


def test_prints_the_mean_and_both_ends() -> None:
    assert str(Interval(mean=0.5, low=0.25, high=0.75)) == "0.50 [0.25, 0.75]"


def test_refuses_what_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no values to resample"):
        bootstrap_mean_of_strata({})
    with pytest.raises(ValueError, match="'colors' has no values"):
        bootstrap_mean_of_strata({"colors": []})
    with pytest.raises(ValueError, match="'all' has no values"):
        bootstrap_mean([[1.0], []])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        bootstrap_mean([[2.0]])
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_mean([[1.0]], confidence=95)
