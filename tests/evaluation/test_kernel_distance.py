"""The kernel distance against its definition, and the laws of an unbiased estimate."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rectiflow.evaluation import kernel_distance as module
from rectiflow.evaluation.features import Features
from rectiflow.evaluation.kernel_distance import SCALE, KernelDistance, kernel_distance


def _features(vectors: Tensor, backbone: str = "A") -> Features:
    return Features(vectors=vectors, backbone=backbone)


def _drawn(num: int, seed: int, *, shift: float = 0.0, width: int = 8) -> Features:
    x = torch.randn(num, width, generator=torch.Generator().manual_seed(seed)).double()
    x[:, 0] += 2.0 + shift
    return _features(x)


def _by_definition(x: Features, y: Features, sigma: float) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * sigma**2))

    xs, ys = (F.normalize(f.vectors.double(), dim=-1) for f in (x, y))
    m, n = len(xs), len(ys)
    own = sum(kernel(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i != j)
    reference = sum(kernel(a, b) for i, a in enumerate(ys) for j, b in enumerate(ys) if i != j)
    cross = sum(kernel(a, b) for a in xs for b in ys)
    return SCALE * (own / (m * (m - 1)) + reference / (n * (n - 1)) - 2 * cross / (m * n))


@pytest.mark.parametrize("sigma", [10.0, 0.7])
def test_equals_its_definition(sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 5)
    x, y = _drawn(13, seed=0, shift=1.0), _drawn(17, seed=1)
    expected = _by_definition(x, y, sigma)
    assert kernel_distance(x, y, sigma=sigma).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sigma", [10.0, 0.7])
@pytest.mark.parametrize("num", [8, 64])
def test_is_zero_on_average_between_draws_of_one_distribution(num: int, sigma: float) -> None:
    """Whatever the number of samples: this is what the Fréchet distance cannot do."""
    values = [
        kernel_distance(_drawn(num, 2 * i), _drawn(num, 2 * i + 1), sigma=sigma).value
        for i in range(400)
    ]
    error = float(np.std(values)) / math.sqrt(len(values))
    assert abs(float(np.mean(values))) < 3.5 * error
    assert min(values) < 0.0


@pytest.mark.parametrize("sigma", [10.0, 0.7])
def test_grows_with_a_shift_of_the_mean(sigma: float) -> None:
    reference = KernelDistance(reference=_drawn(400, 0), sigma=sigma)
    values = [reference(_drawn(400, 1, shift=shift)).value for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    assert values[-1] > 20 * abs(values[0])


def test_a_wide_kernel_measures_the_shift_of_the_mean() -> None:
    one, other = _drawn(2000, 0, shift=1.0), _drawn(2000, 1)
    means = [F.normalize(features.vectors, dim=-1).mean(0) for features in (one, other)]
    expected = SCALE * float((means[0] - means[1]).square().sum()) / 10.0**2
    assert kernel_distance(one, other, sigma=10.0).value == pytest.approx(expected, rel=0.05)


def test_a_narrow_kernel_sees_spread_where_a_wide_one_is_blind() -> None:
    """Vectors along one axis and along two, both ways: equal means, other spread."""
    axes = torch.eye(2, dtype=torch.float64)
    line = _features(torch.cat([axes[:1], -axes[:1]]).repeat(200, 1))
    cross = _features(torch.cat([axes, -axes]).repeat(100, 1))
    assert kernel_distance(line, cross, sigma=10.0).value < 0.1
    assert kernel_distance(line, cross, sigma=0.7).value > 100.0


def test_is_blind_to_order_and_to_length() -> None:
    x, y = _drawn(50, 0, shift=1.0), _drawn(40, 1)
    value = kernel_distance(x, y).value
    mixed = x.vectors[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert kernel_distance(_features(mixed), y).value == pytest.approx(value, rel=1e-9)
    longer = x.vectors * torch.linspace(0.5, 20.0, 50).double()[:, None]
    assert kernel_distance(_features(longer), y).value == pytest.approx(value, rel=1e-9)
    assert kernel_distance(y, x).value == pytest.approx(value, rel=1e-9)


def test_a_reference_serves_many_times() -> None:
    reference = KernelDistance(reference=_drawn(40, 0), sigma=0.5)
    for seed in (1, 2):
        samples = _drawn(30, seed)
        assert reference(samples) == kernel_distance(samples, reference.reference, sigma=0.5)


def test_twins_in_the_reference_lower_the_estimate() -> None:
    """Why reconstructions are not compared with their own originals by it."""
    x = _drawn(50, 0)
    assert kernel_distance(x, x).value < 0.0


def test_keeps_its_sample_counts_and_width() -> None:
    distance = kernel_distance(_drawn(7, 0), _drawn(9, 1))
    assert (distance.num_samples, distance.num_reference) == (7, 9)
    assert (distance.metric, distance.backbone) == ("kernel (σ = 10)", "A")


def test_refuses_what_has_no_pairs_or_does_not_compare() -> None:
    with pytest.raises(ValueError, match="the kernel distance needs at least 2 pictures"):
        kernel_distance(_drawn(1, 0), _drawn(5, 0))
    with pytest.raises(ValueError, match="at least 2 pictures on each side, got 1"):
        kernel_distance(_drawn(5, 0), _drawn(1, 0))
    with pytest.raises(ValueError, match="sigma is 0.0; the kernel's width must be positive"):
        kernel_distance(_drawn(5, 0), _drawn(5, 1), sigma=0.0)
    with pytest.raises(ValueError, match="do not compare"):
        kernel_distance(_drawn(5, 0), _drawn(5, 0, width=4))
