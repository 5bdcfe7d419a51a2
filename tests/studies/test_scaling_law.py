"""Planted laws are found again; whole runs are redrawn."""

import numpy as np
import pytest

from rectiflow.studies.scaling_law import ScalingLaw, fit_law, frontier, quantiles, redraws

SIZES = np.array([2e5, 1e6, 3e6, 8e6])
DATA = np.array([2e3, 4e3, 6e3, 8e3, 1e4])
GRID = np.array([(n, d) for n in SIZES for d in DATA])
PLANTED = ScalingLaw(floor=0.8, factors=(30.0, 40.0), exponents=(0.4, 0.6))


def test_a_planted_law_in_two_scales_is_recovered() -> None:
    law = fit_law(GRID, PLANTED.loss(GRID))
    assert law.exponents == pytest.approx(PLANTED.exponents, rel=1e-3)
    assert law.factors == pytest.approx(PLANTED.factors, rel=1e-2)
    assert law.floor == pytest.approx(PLANTED.floor, rel=1e-3)


def test_a_planted_law_in_compute_is_recovered_under_a_large_floor() -> None:
    planted = ScalingLaw(floor=5.0, factors=(60.0,), exponents=(0.3,))
    compute = np.geomspace(1e9, 1e13, 8)[:, None]
    law = fit_law(compute, planted.loss(compute))
    assert law.exponents == pytest.approx(planted.exponents, rel=1e-3)
    assert law.floor == pytest.approx(planted.floor, rel=1e-3)


def test_an_outlier_hardly_moves_the_law() -> None:
    losses = PLANTED.loss(GRID)
    losses[7] *= 1.2
    assert fit_law(GRID, losses).exponents == pytest.approx(PLANTED.exponents, rel=0.05)


def test_units_of_the_scales_do_not_matter() -> None:
    losses = PLANTED.loss(GRID)
    law, scaled = fit_law(GRID, losses), fit_law(GRID * np.array([1e-6, 1e3]), losses)
    assert scaled.exponents == pytest.approx(law.exponents, rel=1e-4)


def test_noise_widens_the_interval_over_runs_which_holds_the_planted_exponents() -> None:
    generator = np.random.default_rng(0)
    scales = np.concatenate([GRID, GRID])
    runs = [f"{copy}-{n}" for copy in range(2) for n in SIZES for _ in DATA]
    losses = PLANTED.loss(scales) * np.exp(2e-3 * generator.normal(size=len(scales)))
    law = fit_law(scales, losses)
    sizes = [i for _ in range(2) for i, _ in enumerate(SIZES) for _ in DATA]
    redrawn = redraws(runs, sizes, least_sizes=3, num=40)
    others = [fit_law(scales[rows], losses[rows], near=law) for rows in redrawn]
    for j, planted in enumerate(PLANTED.exponents):
        interval = quantiles(law.exponents[j], [other.exponents[j] for other in others])
        assert interval.low < planted < interval.high
        assert interval.high - interval.low > 0.01


def test_redraws_keep_a_runs_checkpoints_together() -> None:
    runs = [name for name in "abcdef" for _ in range(3)]
    sizes = [size for size in (1, 1, 2, 2, 3, 3) for _ in range(3)]
    for rows in redraws(runs, sizes, least_sizes=3, num=20):
        drawn = [runs[row] for row in rows.tolist()]
        assert len(drawn) == len(runs)
        assert {sizes[row] for row in rows.tolist()} == {1, 2, 3}
        assert all(drawn.count(name) % 3 == 0 for name in drawn)


def test_the_frontier_is_what_nothing_cheaper_beats() -> None:
    assert frontier([3.0, 1.0, 2.0, 2.0, 4.0], [1.0, 3.0, 2.0, 2.5, 1.5]) == [1, 2, 0]


def test_what_fixes_no_law_is_refused() -> None:
    with pytest.raises(ValueError, match="4 measurements cannot fix the 5 numbers"):
        fit_law(GRID[:4], np.ones(4))
    with pytest.raises(ValueError, match="must all be positive"):
        fit_law(GRID, PLANTED.loss(GRID) - 10.0)
    with pytest.raises(ValueError, match="runs of 2 sizes are too few"):
        redraws(["a", "b", "a", "c"], [1, 2, 1, 2], least_sizes=3, num=1)


def test_a_redraw_is_not_held_at_a_floor_near_zero() -> None:
    losses = PLANTED.loss(GRID)
    flat = ScalingLaw(floor=1e-11, factors=PLANTED.factors, exponents=PLANTED.exponents)
    assert fit_law(GRID, losses, near=flat).floor == pytest.approx(PLANTED.floor, rel=0.02)
