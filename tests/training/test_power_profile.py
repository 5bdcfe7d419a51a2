"""Power-function averages are the sums that they say, and combinations as near as they say."""

import numpy as np
import pytest
import torch
from torch import nn

from rectiflow.base.errors import ConfigError
from rectiflow.training.ema import Ema
from rectiflow.training.power_profile import PowerProfile, combine, overlap

NUM_STEPS = 96
SIGMA_RELS = (0.05, 0.1)


def weights_of(profile: PowerProfile, step: int) -> np.ndarray:
    """The share of each of `NUM_STEPS` steps in the average after `step`: tau^gamma, integrated."""
    edges = np.minimum(np.arange(NUM_STEPS + 1) / step, 1.0) ** (profile.gamma + 1.0)
    return np.diff(edges)


def averaged(values: np.ndarray) -> dict[float, np.ndarray]:
    """What `Ema` makes of a sequence of weights, after each step."""
    model = nn.Linear(1, 1, bias=False).double()
    emas = {s: Ema(PowerProfile(s).decay_at, model) for s in SIGMA_RELS}
    found: dict[float, list[float]] = {s: [] for s in SIGMA_RELS}
    for step, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        for s, ema in emas.items():
            ema.update(step)
            found[s].append(float(ema.model.weight))
    return {s: np.array(each) for s, each in found.items()}


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return 5.0 + torch.randn(NUM_STEPS, generator=generator).double().cumsum(0).numpy()


@pytest.fixture(scope="module")
def averages(walk: np.ndarray) -> dict[float, np.ndarray]:
    return averaged(walk)


def test_an_average_is_the_sum_with_the_profiles_weights(
    walk: np.ndarray, averages: dict[float, np.ndarray]
) -> None:
    for sigma_rel, found in averages.items():
        for step in (1, 2, 17, NUM_STEPS):
            weights = weights_of(PowerProfile(sigma_rel), step)
            assert weights.sum() == pytest.approx(1.0)
            assert found[step - 1] == pytest.approx(weights @ walk, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.288])
def test_sigma_rel_is_the_weights_spread(sigma_rel: float) -> None:
    gamma = PowerProfile(sigma_rel).gamma
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = tau**gamma / (tau**gamma).sum()
    mean = weights @ tau
    assert (weights @ (tau - mean) ** 2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)


def test_exponents_are_those_of_the_source() -> None:
    assert PowerProfile(0.05).gamma == pytest.approx(16.97, abs=0.005)
    assert PowerProfile(0.10).gamma == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_lengths_that_cannot_be_are_refused(sigma_rel: float) -> None:
    with pytest.raises(
        ConfigError, match=r"sigma_rel is .*give a number above 0 and at most 0.288,"
    ):
        PowerProfile(sigma_rel)


def test_overlap_is_the_integral() -> None:
    a, b = PowerProfile(0.08), PowerProfile(0.2)
    tau = (np.arange(400_000) + 0.5) / 400_000 * 10.0
    for t_a, t_b in ((10, 10), (4, 10), (10, 4)):

        def density(profile: PowerProfile, t: int) -> np.ndarray:
            within = np.where(tau <= t, tau / t, 0.0)
            return (profile.gamma + 1) / t * within**profile.gamma * (tau <= t)

        integral = (density(a, t_a) * density(b, t_b)).mean() * 10.0
        assert overlap(a, t_a, b, t_b) == pytest.approx(integral, rel=1e-4)


def kept_every(every: int) -> list[tuple[PowerProfile, int]]:
    steps = range(every, NUM_STEPS + 1, every)
    return [(PowerProfile(s), step) for step in steps for s in SIGMA_RELS]


def test_what_was_kept_comes_back_exactly() -> None:
    kept = kept_every(12)
    for place in (len(kept) - 2, len(kept) - 1):
        found = combine(kept, kept[place][0], NUM_STEPS)
        assert found.coefficients == pytest.approx(np.eye(len(kept))[place], abs=1e-9)
        assert found.error < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.25])
def test_what_was_not_is_within_the_error_that_is_told(
    sigma_rel: float, walk: np.ndarray, averages: dict[float, np.ndarray]
) -> None:
    wanted, errors = PowerProfile(sigma_rel), []
    for every in (48, 24, 12):
        kept = kept_every(every)
        found = combine(kept, wanted, NUM_STEPS)
        assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-9)
        errors.append(found.error)
        made = sum(
            c * averages[profile.sigma_rel][step - 1]
            for c, (profile, step) in zip(found.coefficients, kept, strict=True)
        )
        # |∫ (p − wanted)(theta − mean)| <= the product of their lengths (Cauchy and Schwarz).
        length = overlap(wanted, NUM_STEPS, wanted, NUM_STEPS) ** 0.5
        bound = found.error * length * np.linalg.norm(walk - walk.mean())
        assert 0.0 < abs(made - weights_of(wanted, NUM_STEPS) @ walk) < bound
        # A sequence that is the difference of the weights attains it, up to how finely steps cut.
        difference = sum(
            c * weights_of(profile, step)
            for c, (profile, step) in zip(found.coefficients, kept, strict=True)
        ) - weights_of(wanted, NUM_STEPS)
        assert 0.5 * found.error * length < np.linalg.norm(difference) < found.error * length
    assert errors[0] > errors[1] > errors[2]
