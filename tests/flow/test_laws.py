"""Laws of paths, predictions, timestep samplers and the loss."""

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import (
    LogitNormal,
    RectifiedFlowPath,
    UnitWeighting,
    VelocityPrediction,
    flow_matching_loss,
    noisy_latents,
    rectified_flow,
)

TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def random_pair(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (num, 3, 4, 4)
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


def test_derivatives_equal_finite_differences():
    path, step = RectifiedFlowPath(), 1e-6
    at, before, after = (path.coefficients(TIMES + d) for d in (0.0, -step, step))
    assert torch.allclose((after.alpha - before.alpha) / (2 * step), at.d_alpha, atol=1e-8)
    assert torch.allclose((after.sigma - before.sigma) / (2 * step), at.d_sigma, atol=1e-8)


def test_log_snr_falls_and_changes_sign_in_the_middle():
    log_snr = RectifiedFlowPath().log_snr(TIMES)
    assert (log_snr.diff() < 0).all()
    assert RectifiedFlowPath().log_snr(torch.tensor([0.5])).item() == 0.0


def test_path_ends_in_data_and_in_noise():
    x0, eps = random_pair(2)
    at = RectifiedFlowPath().coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    z = noisy_latents(x0, eps, at)
    assert torch.equal(z[0], x0[0])
    assert torch.equal(z[1], eps[1])


def test_conversions_round_trip():
    x0, eps = random_pair(len(TIMES))
    at = RectifiedFlowPath().coefficients(TIMES)
    z_t = noisy_latents(x0, eps, at)
    prediction = VelocityPrediction()
    output = prediction.target(x0, eps, at)
    x0_back, eps_back = prediction.to_x0_and_eps(output, z_t, at)
    assert (x0_back - x0).abs().max() < 1e-12
    assert (eps_back - eps).abs().max() < 1e-12
    assert torch.equal(prediction.to_velocity(output, z_t, at), eps - x0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6), (-1.0, 1.8)])
def test_density_integrates_to_one_and_fits_samples(mean, std):
    sampler = LogitNormal(mean=mean, std=std)
    edges = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = sampler.density(middles) * edges.diff()
    assert abs(mass.sum().item() - 1.0) < 1e-3
    expected = mass.reshape(20, 1000).sum(1)
    t = sampler.sample(200_000, torch.Generator().manual_seed(1))
    observed = torch.histc(t, bins=20, min=0.0, max=1.0).double() / len(t)
    assert (observed - expected).abs().max() < 4e-3


def test_quantiles_are_increasing_and_stay_inside():
    u = torch.tensor([2.0**-24, 0.1, 0.5, 0.9, 1 - 2.0**-24])
    t = LogitNormal().from_uniform(u)
    assert t.dtype == torch.float32
    assert (t.diff() > 0).all()
    assert t[0] > 0
    assert t[-1] < 1
    assert t[2].item() == pytest.approx(0.5)


def test_bad_std_is_refused():
    with pytest.raises(ConfigError, match=r"LogitNormal std=0.* must be positive"):
        LogitNormal(std=0.0)


def test_name_is_the_papers():
    assert str(rectified_flow()) == "rf/lognorm(0.00,1.00)"
    assert str(rectified_flow(mean=0.5, std=0.6)) == "rf/lognorm(0.50,0.60)"


def test_unit_weighting_counts_every_time_alike():
    at = RectifiedFlowPath().coefficients(TIMES)
    assert torch.equal(UnitWeighting().weight(TIMES, at), torch.ones_like(TIMES))


def test_loss_is_zero_for_the_true_velocity_and_its_variance_for_zero():
    x0, eps = (part.float() for part in random_pair(8))
    t = TIMES[:8].float()

    def truth(z_t, t, conditioning):
        return eps - x0

    def nothing(z_t, t, conditioning):
        return torch.zeros_like(z_t)

    assert flow_matching_loss(truth, rectified_flow(), x0, eps, t, None).loss.item() == 0.0
    loss = flow_matching_loss(nothing, rectified_flow(), x0, eps, t, None)
    assert torch.allclose(loss.per_sample, (eps - x0).square().flatten(1).mean(1))
    assert loss.loss.item() == pytest.approx(loss.per_sample.mean().item())


def test_loss_is_minimised_by_the_conditional_expectation():
    """For Gaussian data the best velocity is linear in z_t; every other slope costs more."""
    generator = torch.Generator().manual_seed(3)
    x0 = 0.5 * torch.randn(20_000, 1, generator=generator)
    eps = torch.randn(20_000, 1, generator=generator)
    t = torch.full((20_000,), 0.3)
    # E[eps − x0 | z] = z·cov(eps − x0, z)/var(z)
    best = (0.3 - 0.7 * 0.25) / (0.7**2 * 0.25 + 0.3**2)

    def loss_at(slope: float) -> float:
        def linear(z_t, t, conditioning):
            return slope * z_t

        return flow_matching_loss(linear, rectified_flow(), x0, eps, t, None).loss.item()

    assert loss_at(best) < loss_at(best + 0.1)
    assert loss_at(best) < loss_at(best - 0.1)
