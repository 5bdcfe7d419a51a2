"""The Fréchet distance against its closed form, torchmetrics' metric on pictures, and its laws."""

import math

import pytest
import torch
from torch import Tensor, nn

from rectiflow.evaluation.features import Features
from rectiflow.evaluation.frechet_distance import FrechetDistance, frechet_distance


def _features(vectors: Tensor, backbone: str = "A") -> Features:
    return Features(vectors=vectors, backbone=backbone)


def _normal(num: int, width: int, seed: int) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed)).double()


def _whitened(num: int, width: int, seed: int) -> Tensor:
    """A sample whose mean is exactly 0 and covariance exactly 1."""
    x = _normal(num, width, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_equals_the_closed_form_of_commuting_gaussians() -> None:
    """|m1 − m2|² + Σ (s1 − s2)² where the covariances are diagonal."""
    std_1 = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    std_2 = torch.tensor([2.0, 2.0, 0.1, 1.0], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    one = _features(_whitened(50, 4, seed=0) * std_1 + mean)
    other = _features(_whitened(80, 4, seed=1) * std_2)
    expected = float(mean.square().sum() + (std_1 - std_2).square().sum())
    assert frechet_distance(one, other).value == pytest.approx(expected, rel=1e-9)


def test_equals_the_closed_form_of_covariances_that_do_not_commute() -> None:
    """tr (C1·C2)^½ = tr (A·C2·A)^½ with A = C1^½, through symmetric roots alone."""
    mix_1, mix_2 = _normal(5, 5, seed=2), _normal(5, 5, seed=3)
    one = _features(_whitened(60, 5, seed=4) @ mix_1)
    other = _features(_whitened(60, 5, seed=5) @ mix_2)
    cov_1, cov_2 = mix_1.T @ mix_1, mix_2.T @ mix_2

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T

    cross = root(root(cov_1) @ cov_2 @ root(cov_1)).trace()
    expected = float(cov_1.trace() + cov_2.trace() - 2 * cross)
    assert frechet_distance(one, other).value == pytest.approx(expected, rel=1e-8)


@pytest.mark.parity
def test_equals_torchmetrics_on_pictures() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Network(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.float().flatten(1)[:, :12].cos()

    network = Network()
    metric = FrechetInceptionDistance(feature=network)
    real = torch.randint(0, 256, (90, 3, 4, 4), dtype=torch.uint8)
    fake = torch.randint(0, 200, (70, 3, 4, 4), dtype=torch.uint8)
    for part in real.split(30):
        metric.update(part, real=True)
    for part in fake.split(35):
        metric.update(part, real=False)
    ours = frechet_distance(_features(network(fake)), _features(network(real)))
    assert ours.value == pytest.approx(float(metric.compute()), abs=1e-6)


def test_is_zero_of_itself_symmetric_and_blind_to_order() -> None:
    x, y = _normal(64, 16, seed=0), 1.0 + 2.0 * _normal(48, 16, seed=1)
    assert frechet_distance(_features(x), _features(x)).value == pytest.approx(0.0, abs=1e-6)
    there = frechet_distance(_features(x), _features(y)).value
    assert frechet_distance(_features(y), _features(x)).value == pytest.approx(there, rel=1e-9)
    mixed = x[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert frechet_distance(_features(mixed), _features(y)).value == pytest.approx(there, rel=1e-9)


def test_a_reference_serves_many_times() -> None:
    reference = FrechetDistance(reference=_features(_normal(40, 6, seed=0)))
    samples = [_features(_normal(30, 6, seed=seed) + seed) for seed in range(1, 4)]
    assert [reference(s) for s in samples] == [
        frechet_distance(s, reference.reference) for s in samples
    ]
    assert reference(samples[0]) == reference(samples[0])


def test_a_large_mean_costs_no_digits() -> None:
    x, y = _normal(64, 8, seed=0), 0.5 + _normal(64, 8, seed=1)
    near = frechet_distance(_features(x), _features(y)).value
    far = frechet_distance(_features(x + 1000.0), _features(y + 1000.0)).value
    assert far == pytest.approx(near, rel=1e-6)


def test_two_draws_of_one_distribution_come_nearer_with_their_number() -> None:
    """The bias that makes distances compare at equal n only: it falls as 1/n."""
    values = [
        frechet_distance(
            _features(_normal(num, 32, seed=1)), _features(_normal(num, 32, seed=2))
        ).value
        for num in (250, 1000, 4000)
    ]
    slope = math.log(values[0] / values[2]) / math.log(250 / 4000)
    assert slope == pytest.approx(-1.0, abs=0.1)


def test_keeps_its_sample_counts() -> None:
    distance = frechet_distance(_features(_normal(7, 3, 0)), _features(_normal(9, 3, 1)))
    assert (distance.num_samples, distance.num_reference) == (7, 9)
    assert (distance.metric, distance.backbone) == ("Fréchet", "A")


def test_refuses_what_has_no_spread_or_does_not_compare() -> None:
    one, many = _features(_normal(1, 3, 0)), _features(_normal(5, 3, 0))
    with pytest.raises(ValueError, match="the Fréchet distance needs at least 2 pictures"):
        frechet_distance(one, many)
    with pytest.raises(ValueError, match="at least 2 pictures on each side, got 1"):
        frechet_distance(many, one)
    with pytest.raises(ValueError, match="do not compare; embed both with one network"):
        frechet_distance(_features(_normal(5, 3, 0), "B"), many)


def test_importing_the_metric_leaves_torchmetrics_alone(run_python) -> None:
    source = (
        "import sys, rectiflow.evaluation.frechet_distance; print('torchmetrics' in sys.modules)"
    )
    assert run_python(source).stdout.strip() == "False"
