"""Laws of predictions: one linear system behind every conversion."""

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import (
    CosinePath,
    EDMPath,
    EpsPrediction,
    FPrediction,
    LDMLinearPath,
    Prediction,
    ProbabilityPath,
    RectifiedFlowPath,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
    noisy_latents,
)

PATHS = [RectifiedFlowPath(), CosinePath(), LDMLinearPath(), EDMPath()]
PREDICTIONS = [
    X0Prediction(),
    EpsPrediction(),
    VPrediction(),
    VelocityPrediction(),
    FPrediction(),
    FPrediction(data_std=1.0),
]
TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
each_path = pytest.mark.parametrize("path", PATHS, ids=str)
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)


def random_pair(num: int = len(TIMES)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x0, eps = torch.randn((2, num, 3, 4, 4), generator=generator, dtype=torch.float64)
    return x0, eps


@each_path
@each_prediction
def test_conversions_round_trip(path: ProbabilityPath, prediction: Prediction):
    x0, eps = random_pair()
    at = path.coefficients(TIMES)
    z_t = noisy_latents(x0, eps, at)
    output = prediction.target(x0, eps, at)
    x0_back, eps_back = prediction.to_x0_and_eps(output, z_t, at)
    # Relative to what is lost where one part of the pair is large beside the other.
    loss = (prediction.determinant(at).abs().min()).clamp(max=1.0)
    largest = z_t.abs().max().clamp(min=1.0)
    assert (x0_back - x0).abs().max() < 1e-12 * largest / loss
    assert (eps_back - eps).abs().max() < 1e-12 * largest / loss
    velocity = VelocityPrediction().target(x0, eps, at)
    assert torch.allclose(prediction.to_velocity(output, z_t, at), velocity, rtol=1e-9, atol=1e-9)


@each_path
@each_prediction
def test_the_determinant_is_the_outputs_share_of_an_error_in_eps(path, prediction):
    x0, eps = random_pair()
    at = path.coefficients(TIMES)
    z_t = noisy_latents(x0, eps, at)
    moved = eps + 1e-3
    # z_t stays, so x0 gives way.
    alpha, sigma = (part[:, None, None, None] for part in (at.alpha, at.sigma))
    x0_moved = (z_t - sigma * moved) / alpha
    error = prediction.target(x0_moved, moved, at) - prediction.target(x0, eps, at)
    expected = (prediction.determinant(at) / at.alpha * 1e-3)[:, None, None, None]
    assert torch.allclose(error, expected.expand_as(error), rtol=1e-6, atol=1e-12)


def test_conversions_are_singular_where_they_must_be():
    ends = CosinePath().coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert EpsPrediction().determinant(ends).tolist() == [1.0, 0.0]
    assert X0Prediction().determinant(ends).tolist() == [0.0, -1.0]
    for prediction in (VPrediction(), VelocityPrediction(), FPrediction()):
        assert (prediction.determinant(ends).abs() > 0.1).all()
    z = torch.ones(2, 1, dtype=torch.float64)
    x0, _ = EpsPrediction().to_x0_and_eps(0.5 * z, z, ends)
    assert torch.isfinite(x0[0]).all()
    assert not torch.isfinite(x0[1]).any()


def test_f_prediction_has_unit_variance_in_and_out():
    """For data of its standard deviation, at any noise: arXiv 2206.00364, appendix B.6."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn((2, 7, 40_000), generator=generator, dtype=torch.float64)
    x0 = 0.5 * x0
    for path in (EDMPath(), CosinePath()):
        at = path.coefficients(torch.linspace(0.1, 0.9, 7, dtype=torch.float64))
        prediction = FPrediction(data_std=0.5)
        seen = prediction.network_input(noisy_latents(x0, eps, at), at)
        for values in (seen, prediction.target(x0, eps, at)):
            assert torch.allclose(values.std(dim=1), torch.ones(7).double(), atol=0.02)


def test_velocity_of_rectified_flow_is_the_output_itself():
    x0, eps = random_pair()
    at = RectifiedFlowPath().coefficients(TIMES)
    output = VelocityPrediction().target(x0, eps, at)
    assert torch.allclose(output, eps - x0)
    assert VelocityPrediction().to_velocity(output, x0, at) is output


def test_bad_data_std_is_refused():
    with pytest.raises(ConfigError, match="data_std=0.0 must be positive"):
        FPrediction(data_std=0.0)
