"""Laws of probability paths."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from rectiflow.base.errors import ConfigError
from rectiflow.flow import (
    CosinePath,
    DDPMLinearPath,
    EDMPath,
    LDMLinearPath,
    ProbabilityPath,
    RectifiedFlowPath,
    noisy_latents,
)

PATHS = [
    RectifiedFlowPath(),
    CosinePath(),
    LDMLinearPath(),
    DDPMLinearPath(),
    EDMPath(),
    EDMPath(mean=1.2, std=0.6),
]
TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
each_path = pytest.mark.parametrize("path", PATHS, ids=str)


@each_path
def test_derivatives_equal_finite_differences(path: ProbabilityPath):
    step = 1e-6
    at, before, after = (path.coefficients(TIMES + d) for d in (0.0, -step, step))
    for name in ("alpha", "sigma"):
        difference = (getattr(after, name) - getattr(before, name)) / (2 * step)
        derivative = getattr(at, f"d_{name}")
        assert torch.allclose(difference, derivative, rtol=1e-6, atol=1e-8)


@each_path
def test_log_snr_falls(path: ProbabilityPath):
    low, high = path.time_range
    times = torch.linspace(low, high, 500, dtype=torch.float64)[1:-1]
    assert (path.log_snr(times).diff() < 0).all()


@each_path
def test_log_snr_and_place_on_the_line_invert(path: ProbabilityPath):
    assert torch.allclose(path.time_at_log_snr(path.log_snr(TIMES)), TIMES, atol=1e-12)
    assert torch.allclose(path.time_at_place(path.place_on_line(TIMES)), TIMES, atol=1e-12)


@each_path
def test_the_ends_of_the_line_are_the_ends_of_the_range(path: ProbabilityPath):
    ends = path.time_at_place(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx(list(path.time_range), abs=1e-12)
    at = path.coefficients(ends)
    assert torch.isfinite(torch.stack([at.alpha, at.sigma])).all()


@each_path
def test_scaled_latents_lie_on_the_line(path: ProbabilityPath):
    generator = torch.Generator().manual_seed(7)
    x0, eps = torch.randn((2, len(TIMES), 3), generator=generator, dtype=torch.float64)
    at = path.coefficients(TIMES)
    on_line = noisy_latents(x0, eps, at) / (at.alpha + at.sigma)[:, None]
    s = path.place_on_line(TIMES)[:, None]
    assert torch.allclose(on_line, (1 - s) * x0 + s * eps, atol=1e-12)


@pytest.mark.parametrize("path", [RectifiedFlowPath(), CosinePath()], ids=str)
def test_exact_paths_end_in_data_and_in_noise(path: ProbabilityPath):
    at = path.coefficients(torch.tensor([0.0, 1.0]))
    assert at.alpha.tolist() == [1.0, 0.0]
    assert at.sigma.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("path", [CosinePath(), LDMLinearPath(), DDPMLinearPath()], ids=str)
def test_variance_is_preserved(path: ProbabilityPath):
    at = path.coefficients(TIMES)
    assert torch.allclose(at.alpha**2 + at.sigma**2, torch.ones_like(TIMES), atol=1e-14)


def test_sigma_of_edm_is_log_normal():
    path = EDMPath(mean=0.6, std=1.8)
    logs = path.coefficients(torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:-1]).sigma.log()
    assert logs.mean().item() == pytest.approx(0.6, abs=1e-3)
    assert logs.std().item() == pytest.approx(1.8, abs=1e-2)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("path", "schedule"),
    [(LDMLinearPath(), "scaled_linear"), (DDPMLinearPath(), "linear")],
    ids=["linear", "ddpm-linear"],
)
def test_discrete_rates_are_those_of_diffusers(path, schedule):
    scheduler = DDPMScheduler(
        num_train_timesteps=path.num_steps,
        beta_start=path.beta_start,
        beta_end=path.beta_end,
        beta_schedule=schedule,
    )
    t = torch.linspace(0, 1, path.num_steps, dtype=torch.float64)
    alpha = path.coefficients(t).alpha
    exact = torch.cumprod(1.0 - scheduler.betas.double(), dim=0).sqrt()
    assert torch.allclose(alpha, exact, rtol=2e-6)  # their rates are float32


def test_discrete_rates_follow_the_product_exactly():
    for path, betas in (
        (LDMLinearPath(), torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2),
        (DDPMLinearPath(), torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)),
    ):
        t = torch.linspace(0, 1, 1000, dtype=torch.float64)
        exact = torch.cumprod(1.0 - betas, dim=0).sqrt()
        assert torch.allclose(path.coefficients(t).alpha, exact, rtol=1e-9)


@each_path
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_times_are_refused(path: ProbabilityPath, dtype: torch.dtype):
    with pytest.raises(ValueError, match=f"t is {dtype}; times are float32 or float64"):
        path.coefficients(torch.tensor([0.5], dtype=dtype))


@each_path
@pytest.mark.parametrize("time", [-0.1, 1.5, math.nan])
def test_times_outside_are_refused(path: ProbabilityPath, time: float):
    with pytest.raises(ValueError, match=r"t holds .*; times lie in \[0, 1\]"):
        path.coefficients(torch.tensor([0.5, time]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EDMPath(mean=0.0, std=0.0), "edm P_s=0.0 must be positive"),
        (lambda: EDMPath(mean=math.inf), "edm P_m=inf must be a finite number"),
        (
            lambda: EDMPath(mean=40.0),
            r"edm P_m=40.0 and P_s=1.2 give .* P_m from about -6.2 to 4.4",
        ),
        (lambda: EDMPath(mean=-40.0), "edm P_m=-40.0 and P_s=1.2 give next to no t a sigma"),
        (lambda: LDMLinearPath(beta_start=0.5, beta_end=0.1), "betas run from 0.5 to 0.1"),
        (lambda: DDPMLinearPath(num_steps=1), "num_steps=1 must be at least 2"),
    ],
)
def test_bad_parameters_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
