"""Laws of Pareto ranks."""

import numpy as np
import pytest
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from rectiflow.studies.ranking import (
    mean_ranks,
    pareto_fronts,
    ranks_with_intervals,
    widest_confidence,
)
from rectiflow.studies.scoring import NUM_REPLICATES


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
    measured = np.array([[1.0], [2.0], [3.0]])
    sure = np.repeat(measured[:, None], 4, axis=1)
    assert [(r.mean, r.low, r.high) for r in ranks_with_intervals([measured], [sure])] == [
        (3.0, 3.0, 3.0),
        (2.0, 2.0, 2.0),
        (1.0, 1.0, 1.0),
    ]
    noise = np.random.default_rng(0).normal(size=(3, 40, 1))
    scattered = ranks_with_intervals([measured], [sure[:, :1] + 3 * noise])
    assert all(1.0 <= rank.low <= rank.high <= 3.0 for rank in scattered)
    assert any(rank.high > rank.low for rank in scattered)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_intervals_cover_a_planted_rank_as_often_as_they_say(bias: float) -> None:
    """A competitor whose score is measured with noise of one, among rivals that are known.

    Measuring adds a bias, and redrawing what was measured adds it again, as few pictures do to a
    Fréchet distance.
    """
    generator, truth = np.random.default_rng(0), 0.1
    rivals = np.linspace(-3.0, 3.0, 13)[:, None]

    def among_rivals(score: float) -> np.ndarray:
        return np.concatenate([[[score]], rivals])

    planted = mean_ranks([among_rivals(truth)])[0]
    num_covered, num_trials = 0, 100
    for _ in range(num_trials):
        score = truth + bias + generator.normal()
        redrawn = score + bias + generator.normal(size=NUM_REPLICATES)
        replicates = np.repeat(among_rivals(score)[:, None], NUM_REPLICATES, axis=1)
        replicates[0, :, 0] = redrawn
        rank = ranks_with_intervals([among_rivals(score)], [replicates])[0]
        num_covered += rank.low <= planted <= rank.high
    assert num_covered >= 0.9 * num_trials


def test_a_rank_that_the_redraws_bias_made_lies_outside_its_interval() -> None:
    # Measured just above its rival, redrawn far above it: without that bias it is far below.
    measured = np.array([[1.1], [1.0]])
    replicates = np.repeat(measured[:, None], 50, axis=1)
    replicates[0] += 5.0
    rank = ranks_with_intervals([measured], [replicates])[0]
    assert (rank.mean, rank.low, rank.high) == (1.0, 2.0, 2.0)


def test_so_many_replicates_reach_the_confidence_that_is_asked() -> None:
    assert widest_confidence(24) == pytest.approx(0.92)
    assert widest_confidence(39) == pytest.approx(0.95)
    assert widest_confidence(0) == 0.0
    assert widest_confidence(NUM_REPLICATES) > 0.95


def test_scatter_that_all_share_moves_no_rank() -> None:
    measured = np.array([[1.0], [2.0], [3.0]])
    shared = 10.0 * np.random.default_rng(0).normal(size=(1, 40, 1))
    ranks = ranks_with_intervals([measured], [measured[:, None] + shared])
    assert all(rank.low == rank.mean == rank.high for rank in ranks)


def test_what_diverged_is_last_in_every_replicate() -> None:
    measured = np.array([[np.nan], [2.0]])
    replicates = np.stack([np.full((5, 1), np.nan), np.arange(5.0)[:, None]])
    last, first = ranks_with_intervals([measured], [replicates])
    assert (last.low, last.high, first.low, first.high) == (2.0, 2.0, 1.0, 1.0)


def test_settings_must_have_the_same_replicates() -> None:
    measured = np.zeros((2, 1))
    with pytest.raises(ValueError, match="settings differ in competitors or replicates"):
        ranks_with_intervals([measured] * 2, [np.zeros((2, 3, 1)), np.zeros((2, 4, 1))])
    with pytest.raises(ValueError, match="there are no settings to rank in"):
        ranks_with_intervals([], [])
