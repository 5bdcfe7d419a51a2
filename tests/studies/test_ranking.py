"""Laws of Pareto ranks."""

import numpy as np
import pytest
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from rectiflow.studies.ranking import bootstrap_ranks, mean_ranks, pareto_fronts


def random_scores(seed: int) -> np.ndarray:
    """Up to 61 points with ties: coarse values, some points twice."""
    generator = np.random.default_rng(seed)
    num, num_metrics = generator.integers(1, 62), generator.integers(1, 4)
    scores = generator.integers(0, 8, size=(num, num_metrics)) / 7.0
    return np.concatenate([scores, scores[: num // 4]])


@pytest.mark.parity
def test_fronts_are_those_of_pymoo_on_300_sets_with_ties() -> None:
    for seed in range(300):
        scores = random_scores(seed)
        expected = np.zeros(len(scores), dtype=int)
        for front, members in enumerate(NonDominatedSorting().do(-scores), start=1):
            expected[members] = front
        assert pareto_fronts(scores).tolist() == expected.tolist()


def test_a_front_holds_trade_offs_and_the_next_what_they_beat() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert pareto_fronts(scores).tolist() == [1, 1, 2, 3, 1]


def test_what_diverged_comes_last() -> None:
    scores = np.array([[0.1, 0.1], [np.nan, 9.0], [0.2, 0.2], [np.nan, np.nan]])
    assert pareto_fronts(scores).tolist() == [2, 3, 1, 3]
    assert pareto_fronts(np.full((2, 2), np.nan)).tolist() == [1, 1]


def test_fronts_do_not_depend_on_order_or_on_monotone_scales() -> None:
    for seed in range(20):
        scores = random_scores(seed)
        order = np.random.default_rng(seed).permutation(len(scores))
        assert (pareto_fronts(scores[order]) == pareto_fronts(scores)[order]).all()
        assert (pareto_fronts(np.exp(3 * scores)) == pareto_fronts(scores)).all()


def test_ranks_are_means_over_settings() -> None:
    first, second = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [0.0]])
    assert mean_ranks([first, second]).tolist() == [2.5, 1.5, 2.0]
    with pytest.raises(ValueError, match="there are no settings to rank in"):
        mean_ranks([])


def test_intervals_are_points_without_scatter_and_wide_with_it() -> None:
    sure = np.repeat(np.array([[1.0], [2.0], [3.0]])[:, None], 4, axis=1)
    assert [(r.mean, r.low, r.high) for r in bootstrap_ranks([sure])] == [
        (3.0, 3.0, 3.0),
        (2.0, 2.0, 2.0),
        (1.0, 1.0, 1.0),
    ]
    noise = np.random.default_rng(0).normal(size=(3, 4, 1))
    scattered = bootstrap_ranks([sure + 3 * noise], num_resamples=200)
    assert all(1.0 <= rank.low <= rank.mean <= rank.high <= 3.0 for rank in scattered)
    assert any(rank.high > rank.low for rank in scattered)
    assert bootstrap_ranks([sure + noise], seed=1) == bootstrap_ranks([sure + noise], seed=1)


def test_settings_must_have_the_same_repetitions() -> None:
    with pytest.raises(ValueError, match="settings differ in competitors or repetitions"):
        bootstrap_ranks([np.zeros((2, 3, 1)), np.zeros((2, 4, 1))])
    with pytest.raises(ValueError, match="there are no settings to rank in"):
        bootstrap_ranks([])
