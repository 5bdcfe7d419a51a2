"""Laws of repeated runs' means, spreads and paired differences."""

import math

import numpy as np
import pytest

from rectiflow.studies.spread import curve_over, paired_difference, spread_of


def test_what_seeds_share_cancels_in_a_paired_difference() -> None:
    luck = {seed: 10.0 * seed for seed in range(4)}
    better = {seed: value + 0.1 for seed, value in luck.items()}
    difference = paired_difference(better, luck)
    assert difference is not None
    assert difference.mean == pytest.approx(0.1)
    assert difference.is_decided
    assert spread_of(list(luck.values())).std > 10.0


def test_the_interval_covers_the_planted_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_covered = 0
    for _ in range(1000):
        first = dict(enumerate((0.3 + generator.normal(size=3)).tolist()))
        difference = paired_difference(first, dict.fromkeys(range(3), 0.0))
        assert difference is not None
        num_covered += abs(difference.mean - 0.3) <= difference.half_width
    assert 930 <= num_covered <= 970


def test_one_seed_decides_nothing_and_no_seed_says_nothing() -> None:
    difference = paired_difference({0: 5.0, 1: 9.0}, {0: 1.0})
    assert difference is not None
    assert math.isinf(difference.half_width)
    assert not difference.is_decided
    assert difference.text() == "+4.000 (one seed)"
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert spread_of([2.0]).text() == "2.000"


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="nothing to average; give at least one"):
        spread_of([])


def test_a_curve_is_sorted_and_its_band_is_one_deviation_wide() -> None:
    rows = [{"step": step, "loss": step + offset} for step in (2, 1) for offset in (-1.0, 1.0)]
    curve = curve_over(rows, x="step", y="loss")
    assert curve.xs == [1, 2]
    assert curve.ys == [1.0, 2.0]
    assert curve.low is not None
    assert curve.high is not None
    assert np.subtract(curve.high, curve.low) == pytest.approx([2 * math.sqrt(2)] * 2)
