"""Ancestral steps draw from the distribution that noise and data leave open."""

import itertools
import math

import pytest
import torch
from sampling.gaussian_flow import DATA_STD, gaussian_velocity, noise

from rectiflow.base.errors import ConfigError
from rectiflow.sampling import Ancestral, Euler, FreshNoise, integrate, linear_times

etas = pytest.mark.parametrize("eta", [0.3, 1.0])


def fresh_noise(seed: int, *shape: int) -> FreshNoise:
    def fresh(number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + number)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return fresh


def variance_at_the_end(eta: float, num_steps: int) -> float:
    """Of samples of the Gaussian flow: all steps are linear, so it is told without any sample."""
    ones, zeros = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    solver, variance = Ancestral(eta=eta), 1.0
    for times in linear_times(num_steps).double().unfold(0, 2, 1):
        kept = integrate(gaussian_velocity, solver, ones, times, fresh=lambda _: zeros)
        added = integrate(gaussian_velocity, solver, zeros, times, fresh=lambda _: ones)
        variance = kept.item() ** 2 * variance + added.item() ** 2
    return variance


@etas
def test_samples_of_the_gaussian_flow_spread_as_its_data_with_order_one(eta: float) -> None:
    errors = [abs(variance_at_the_end(eta, n) - DATA_STD**2) for n in (40, 80, 160, 320)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(1.0, abs=0.2), orders


def test_a_whole_step_is_the_posterior_of_bayes() -> None:
    """z' given z and x0, from z' = (1 − t')·x0 + t'·eps' and z = a·z' + noise."""
    t, t_next, x0 = 0.8, 0.55, 3.0
    z = torch.tensor([[-1.0], [0.4], [2.0]], dtype=torch.float64)
    a = (1 - t) / (1 - t_next)
    variance_of_rest = t**2 - a**2 * t_next**2
    precision = 1 / t_next**2 + a**2 / variance_of_rest
    mean = ((1 - t_next) * x0 / t_next**2 + a * z / variance_of_rest) / precision
    n = fresh_noise(1, 3, 1)
    drawn = integrate(
        lambda z, t: (z - x0) / t, Ancestral(), z, torch.tensor([t, t_next]).double(), fresh=n
    )
    torch.testing.assert_close(drawn, mean + n(0) / math.sqrt(precision), atol=1e-6, rtol=0)


@etas
def test_where_the_data_are_known_noise_keeps_its_length(eta: float) -> None:
    def look(i: int, t: torch.Tensor, z: torch.Tensor) -> None:
        rest = z - (1 - t) * 3.0
        assert rest.std().item() == pytest.approx(t.item(), rel=0.05)

    fresh = fresh_noise(2, 4000, 1)
    start = fresh_noise(3, 4000, 1)(0)
    end = integrate(
        lambda z, t: (z - 3.0) / t, Ancestral(eta=eta), start, linear_times(6), look, fresh=fresh
    )
    torch.testing.assert_close(end, torch.full_like(end, 3.0))


def test_noise_comes_once_a_step_that_has_a_length() -> None:
    asked: list[int] = []

    def fresh(number: int) -> torch.Tensor:
        asked.append(number)
        return torch.zeros(9, 1)

    times = torch.tensor([1.0, 0.9, 0.9, 0.4, 0.1])
    integrate(gaussian_velocity, Ancestral(), noise().float(), times, fresh=fresh)
    assert asked == [0, 1, 2]


def test_without_new_noise_it_is_euler() -> None:
    ours, euler = (
        integrate(gaussian_velocity, solver, noise(), linear_times(7).double())
        for solver in (Ancestral(eta=0.0), Euler())
    )
    torch.testing.assert_close(ours, euler, atol=1e-12, rtol=0)


def test_what_it_cannot_do_is_told() -> None:
    with pytest.raises(ValueError, match="ancestral steps take new noise; give `integrate`"):
        integrate(gaussian_velocity, Ancestral(), noise(), linear_times(2).double())
    for eta in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match=f"eta={eta} must be from 0"):
            Ancestral(eta=eta)
