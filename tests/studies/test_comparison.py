"""Laws of spreads, paired differences and win rates."""

import math

import numpy as np
import pytest

from rectiflow.studies.comparison import (
    ScoredPicture,
    paired_difference,
    seedwise_difference,
    sign_test,
    spread_of,
    win_rate,
)


def scored(*scores: float, task: str = "colors") -> list[ScoredPicture]:
    return [
        ScoredPicture(task=task, prompt=f"prompt {i}", score=score)
        for i, score in enumerate(scores)
    ]


def test_a_win_rate_among_equals_is_a_half() -> None:
    pictures = scored(0.1, 0.5, 0.9)
    rate = win_rate(pictures, pictures)
    assert rate.mean == 0.5
    assert rate.low < 0.5 < rate.high


def test_two_win_rates_of_a_pair_add_to_one() -> None:
    first, second = scored(0.1, 0.5, 0.9, 0.4), scored(0.2, 0.5, 0.1, 0.1)
    assert win_rate(first, second).mean == 0.625
    assert win_rate(first, second).mean + win_rate(second, first).mean == 1.0


def test_every_task_weighs_the_same() -> None:
    ours = scored(1.0, 1.0, 1.0) + scored(0.0, task="counting")
    theirs = scored(0.0, 0.0, 0.0) + scored(1.0, task="counting")
    assert win_rate(ours, theirs).mean == 0.5


def test_win_rates_need_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="pictures of the same prompts in the same order"):
        win_rate(scored(0.1, 0.2), scored(0.1))


def test_a_difference_is_paired_and_antisymmetric() -> None:
    # Apart by nearly the same amount for every seed, however far the seeds lie apart.
    first, second = [0.2, 0.51, 0.9], [0.1, 0.4, 0.8]
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(0.31 / 3)
    assert difference.is_clear
    opposite = paired_difference(second, first)
    assert (opposite.low, opposite.high) == pytest.approx((-difference.high, -difference.low))


@pytest.mark.parametrize("first", [[0.2, 0.5, 0.9], [0.3, 0.6], [0.1, 0.4]])
def test_seeds_that_differ_by_the_same_tell_no_spread(first: list[float]) -> None:
    second = [0.1, 0.4, 0.8][: len(first)]
    difference = paired_difference(first, second)
    assert not difference.is_clear
    assert f"(alike for {len(first)} seeds)" in str(difference)
    assert "not enough to call a difference" in difference.describe(more="more", less="less")


def test_two_seeds_of_few_equally_good_pictures_call_no_difference_too_often() -> None:
    # Shares of 8 pictures: one pair of seeds in six differs by the same, by chance.
    generator = np.random.default_rng(0)
    shares = generator.binomial(8, 0.5, size=(4000, 2, 2)) / 8
    num_clear = sum(paired_difference(a.tolist(), b.tolist()).is_clear for a, b in shares)
    assert num_clear <= 0.05 * len(shares)


def test_the_interval_is_students() -> None:
    difference = paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert difference.high - difference.mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert not difference.is_clear


def test_one_seed_shows_nothing() -> None:
    difference = paired_difference([0.9], [0.1])
    assert not difference.is_clear
    assert str(difference) == "+0.800 (one seed)"
    assert "one seed is not enough" in difference.describe(more="more", less="less")
    assert str(spread_of([0.5])) == "0.500"
    assert str(spread_of([0.4, 0.6])) == "0.500 ± 0.141"


def test_values_must_be_there_and_in_pairs() -> None:
    with pytest.raises(ValueError, match="2 values came with 1"):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="no values to take the spread of"):
        spread_of([])


def test_the_interval_covers_the_planted_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_covered = 0
    for _ in range(1000):
        difference = paired_difference((0.3 + generator.normal(size=3)).tolist(), [0.0] * 3)
        num_covered += difference.low <= 0.3 <= difference.high
    assert 930 <= num_covered <= 970


def test_the_sign_test_is_that_of_fair_coins() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(1, 0) == 1.0
    assert sign_test(3, 0) == pytest.approx(2 / 2**3)
    assert sign_test(6, 0) == sign_test(0, 6) == pytest.approx(2 / 2**6)
    assert sign_test(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    # Among equals no more than one in twenty is called significant.
    firsts = np.random.default_rng(0).binomial(12, 0.5, size=2000).tolist()
    assert sum(sign_test(first, 12 - first) < 0.05 for first in firsts) <= 0.05 * len(firsts)


def test_only_seeds_of_both_are_compared() -> None:
    difference = seedwise_difference({0: 5.0, 1: 9.0, 3: 2.0}, {3: 1.0, 0: 3.0})
    assert difference is not None
    assert (difference.mean, difference.num) == (1.5, 2)
    assert seedwise_difference({0: 1.0}, {1: 1.0}) is None


def test_numbers_print_with_as_many_digits_as_asked() -> None:
    assert spread_of([1.0, 2.0]).text(1) == "1.5 ± 0.7"
    assert paired_difference([1.0], [0.5]).text(2) == "+0.50 (one seed)"
