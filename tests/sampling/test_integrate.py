"""The loop shows every step, and stops where latents are no numbers any more."""

import re

import pytest
import torch
from sampling.gaussian_flow import gaussian_velocity, noise
from sampling.test_solvers import SOLVERS

from rectiflow.base.errors import ConfigError, DivergedError, UserError
from rectiflow.sampling import DormandPrince, Euler, Solver, integrate, linear_times


def test_integrate_reports_every_step() -> None:
    seen = []
    integrate(
        gaussian_velocity,
        Euler(),
        torch.ones(1, 1),
        linear_times(4),
        lambda i, t, z: seen.append((i, round(t.item(), 4))),
    )
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_what_is_not_finite_stops_the_walk(solver: Solver, value: float) -> None:
    def field(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        velocity = gaussian_velocity(z, t)
        # After two of four steps, in the third sample only.
        velocity[2] = torch.where(t < 0.5, value, velocity[2])
        return velocity

    told = "latents of sample .*2.* are not finite after step [34] of 4"
    with pytest.raises(DivergedError, match=told) as caught:
        integrate(field, solver, noise(), torch.linspace(1, 0, 5).double())
    assert "so the network put it out: its weights hold such values, or it" in str(caught.value)


def test_a_walk_that_runs_away_is_told_from_a_broken_network() -> None:
    with pytest.raises(DivergedError, match="the steps run away: lower the guidance"):
        integrate(lambda z, t: -(z**3), Euler(), 20 + noise().float(), linear_times(8))


def test_damaged_noise_is_told() -> None:
    z = noise()
    z[4] = float("nan")
    told = re.escape("sample 4 are not finite after step 1 of 4 (t = 1 to 0.75); they were not")
    with pytest.raises(DivergedError, match=told):
        integrate(gaussian_velocity, Euler(), z, linear_times(4).double())


def test_samples_are_told_by_their_places_among_the_callers() -> None:
    z = noise()
    z[3:] = float("nan")
    places = [*range(10, 13), *[13] * (len(z) - 3)]
    with pytest.raises(DivergedError, match="latents of sample 13 are not finite"):
        integrate(gaussian_velocity, Euler(), z, linear_times(4).double(), places=places)


def test_a_tolerance_out_of_reach_is_told() -> None:
    generator = torch.Generator().manual_seed(0)

    def rough(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 100 * torch.randn(z.shape, generator=generator)

    with pytest.raises(UserError, match="tolerance=1e-06 was not reached in 1000 steps from t = "):
        integrate(rough, DormandPrince(tolerance=1e-6), torch.zeros(3, 1), linear_times(2))
    with pytest.raises(ConfigError, match=r"tolerance=0\.0 must be a positive number"):
        DormandPrince(tolerance=0.0)
