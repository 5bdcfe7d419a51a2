"""Laws of weightings: the paper's closed forms, and what is equal to what."""

import math

import pytest
import torch

from rectiflow.flow import (
    CosinePath,
    DensityWeighting,
    EDMPath,
    EpsPrediction,
    ErrorOf,
    Formulation,
    FPrediction,
    LogitNormal,
    RectifiedFlowPath,
    Uniform,
    UnitWeighting,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
    flow_matching_loss,
    noisy_latents,
    parse_formulation,
)

TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def is_proportional(first: torch.Tensor, second: torch.Tensor) -> bool:
    ratio = first / second
    return torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-9)


def log_snr(formulation: Formulation) -> torch.Tensor:
    return formulation.path.log_snr(TIMES)


def test_unit_weighting_counts_every_time_alike():
    at = RectifiedFlowPath().coefficients(TIMES)
    weight = UnitWeighting().weight(TIMES, at, VelocityPrediction())
    assert torch.equal(weight, torch.ones_like(TIMES))


def test_rectified_flow_has_the_papers_weight():
    # w = t/(1 − t), with a density times pi(t)
    assert torch.allclose(parse_formulation("rf").paper_weight(TIMES), TIMES / (1 - TIMES))
    for sampler in ("lognorm(0.5,0.6)", "mode(1.29)", "cosmap"):
        formulation = parse_formulation(f"rf/{sampler}")
        expected = TIMES / (1 - TIMES) * formulation.timesteps.density(TIMES)
        assert torch.allclose(formulation.paper_weight(TIMES), expected)


def test_eps_and_v_of_the_cosine_path_have_the_papers_weights():
    eps, v = parse_formulation("eps/cos"), parse_formulation("v/cos")
    # sech(lambda/2) and exp(−lambda/2), up to a constant
    assert is_proportional(eps.paper_weight(TIMES), 1 / torch.cosh(log_snr(eps) / 2))
    assert is_proportional(v.paper_weight(TIMES), torch.exp(-log_snr(v) / 2))


def test_edm_has_the_papers_weight():
    formulation = parse_formulation("edm(-0.6,1.2)")
    snr = log_snr(formulation)
    # N(lambda; −2·P_m, (2·P_s)²)·(exp(−lambda) + 0.5²)
    density = torch.exp(-0.5 * ((snr - 1.2) / 2.4) ** 2)
    assert is_proportional(formulation.paper_weight(TIMES), density * (torch.exp(-snr) + 0.25))


@pytest.mark.parametrize(("edm", "matched"), [("edm/rf", "rf"), ("edm/cos", "v/cos")])
def test_matched_edm_weighs_log_snr_as_its_match(edm: str, matched: str):
    first, second = parse_formulation(edm), parse_formulation(matched)
    assert torch.allclose(log_snr(first), log_snr(second))
    assert is_proportional(first.paper_weight(TIMES), second.paper_weight(TIMES))


@pytest.mark.parametrize("path", [RectifiedFlowPath(), CosinePath(), EDMPath()], ids=str)
def test_losses_of_equal_weighting_agree_across_predictions(path):
    """One belief about x0, said in every prediction's terms, costs the same."""
    generator = torch.Generator().manual_seed(3)
    x0, eps, belief = torch.randn((3, len(TIMES), 8), generator=generator, dtype=torch.float64)
    at = path.coefficients(TIMES)
    z_t = noisy_latents(x0, eps, at)
    eps_belief = (z_t - at.alpha[:, None] * belief) / at.sigma[:, None]
    losses = []
    for prediction in (
        X0Prediction(),
        EpsPrediction(),
        VPrediction(),
        VelocityPrediction(),
        FPrediction(),
    ):
        formulation = Formulation(
            path=path,
            prediction=prediction,
            timesteps=Uniform(),
            weighting=ErrorOf(measured=VPrediction()),
        )
        output = prediction.target(belief, eps_belief, at)
        loss = flow_matching_loss(
            lambda z, t, c, output=output: output.float(), formulation, x0, eps, TIMES, None
        )
        losses.append(loss.per_sample)
    for loss in losses[1:]:
        assert torch.allclose(loss, losses[0], rtol=1e-4)


def test_drawing_times_from_a_density_equals_weighting_by_it():
    sampler = LogitNormal(mean=0.5, std=0.6)
    drawn = Formulation(
        path=RectifiedFlowPath(),
        prediction=VelocityPrediction(),
        timesteps=sampler,
        weighting=UnitWeighting(),
    )
    weighted = Formulation(
        path=RectifiedFlowPath(),
        prediction=VelocityPrediction(),
        timesteps=Uniform(),
        weighting=DensityWeighting(density_of=sampler),
    )
    assert torch.allclose(drawn.paper_weight(TIMES), weighted.paper_weight(TIMES))
    # the same in expectation, on a grid of quantiles
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    means = []
    for formulation in (drawn, weighted):
        t = formulation.timesteps.from_uniform(u)
        at = formulation.path.coefficients(t)
        weight = formulation.weighting.weight(t, at, formulation.prediction)
        means.append((weight * torch.sin(3 * t)).mean().item())
    assert math.isclose(*means, rel_tol=1e-6)
