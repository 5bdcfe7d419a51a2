"""Laws of time grids, solvers, guidance and the field."""

import itertools
import math

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift, rectified_flow
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling import (
    ClassifierFreeGuidance,
    Euler,
    Field,
    NoGuidance,
    integrate,
    linear_times,
)

DATA_STD = 0.5


def gaussian_velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps − x0 | z_t] for data N(0, DATA_STD²): the exact field of rectified flow."""
    variance = (1 - t) ** 2 * DATA_STD**2 + t**2
    return z * (t - (1 - t) * DATA_STD**2) / variance


def exact_end(z: torch.Tensor) -> torch.Tensor:
    """The flow carries the quantiles of N(0, 1) to those of N(0, DATA_STD²)."""
    return DATA_STD * z


def prompts(value: float, num: int = 3) -> Conditioning:
    return Conditioning(context=torch.full((num, 2, 4), value), pooled=torch.full((num, 4), value))


@pytest.mark.parametrize("solver", [Euler()])
def test_order_of_convergence_on_the_gaussian_flow(solver):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for num_steps in (20, 40, 80, 160):
        times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        end = integrate(gaussian_velocity, solver, z, times)
        errors.append((end - exact_end(z)).abs().max().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(solver.order, abs=0.1)


def test_integrate_reports_every_step():
    seen = []
    integrate(
        gaussian_velocity,
        Euler(),
        torch.ones(1, 1),
        linear_times(4),
        lambda i, t, z: seen.append((i, round(t.item(), 4))),
    )
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]


def test_times_run_from_noise_to_data_and_shift_keeps_the_ends():
    for shift in (0.5, 1.0, 3.0):
        times = linear_times(28, shift=ResolutionShift(alpha=shift))
        assert times[0] == 1.0
        assert times[-1] == 0.0
        assert (times.diff() < 0).all()
    assert linear_times(2, shift=ResolutionShift(alpha=3.0))[1].item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: linear_times(0), "num_steps=0 must be at least 1"),
        (lambda: ClassifierFreeGuidance(guidance_scale=-1.0), "guidance_scale=-1.0 must be"),
        (lambda: ClassifierFreeGuidance(guidance_scale=math.nan), "guidance_scale=nan must be"),
    ],
)
def test_bad_settings_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_guidance_evaluates_one_batch_and_extrapolates():
    sizes = []

    def backbone(z_t, t, conditioning):
        sizes.append(len(z_t))
        return torch.ones_like(z_t) * conditioning.pooled[:, :1]

    def velocity(guidance):
        field = Field(
            backbone=backbone,
            formulation=rectified_flow(),
            guidance=guidance,
            conditioning=prompts(2.0),
            null=prompts(1.0),
        )
        return field(torch.zeros(3, 1), torch.tensor(0.5))

    assert torch.equal(velocity(NoGuidance()), torch.full((3, 1), 2.0))
    assert torch.equal(
        velocity(ClassifierFreeGuidance(guidance_scale=1.0)), torch.full((3, 1), 2.0)
    )
    assert torch.equal(
        velocity(ClassifierFreeGuidance(guidance_scale=4.0)), torch.full((3, 1), 5.0)
    )
    assert sizes == [3, 6, 6]
