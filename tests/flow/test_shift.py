"""Laws of the resolution shift."""

import math

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import (
    CosinePath,
    EDMPath,
    LDMLinearPath,
    LogitNormal,
    RectifiedFlowPath,
    ResolutionShift,
)

TIMES = torch.linspace(0.05, 0.9, 18, dtype=torch.float64)
PATHS = [RectifiedFlowPath(), CosinePath(), LDMLinearPath(), EDMPath()]


def test_shifts_compose_and_invert():
    two, three = ResolutionShift(alpha=2.0), ResolutionShift(alpha=3.0)
    assert two.then(three) == ResolutionShift(alpha=6.0)
    twice = two.on_line(three.on_line(TIMES))
    assert torch.allclose(twice, ResolutionShift(alpha=6.0).on_line(TIMES))
    assert torch.allclose(three.inverse().on_line(three.on_line(TIMES)), TIMES)
    assert ResolutionShift().along(RectifiedFlowPath(), TIMES) is TIMES


def test_the_ends_stay():
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(ResolutionShift(alpha=3.0).on_line(ends), ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_shift_leaves_the_line(dtype):
    steps = torch.arange(100, dtype=dtype) * torch.finfo(dtype).eps / 2
    s = torch.cat([steps, 1 - steps])
    for alpha in torch.logspace(-2, 2, 400, dtype=torch.float64).tolist():
        shifted = ResolutionShift(alpha=alpha).on_line(s)
        assert ((shifted >= 0) & (shifted <= 1)).all(), alpha


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_log_snr_falls_by_two_log_alpha_on_every_path(path):
    shift = ResolutionShift(alpha=1.2)
    shifted = path.log_snr(shift.along(path, TIMES))
    assert torch.allclose(shifted, path.log_snr(TIMES) - 2 * math.log(1.2), atol=1e-6)


def test_alpha_equates_what_a_constant_picture_leaves_uncertain():
    # sigma(t, n) = t/(1 − t)/sqrt(n), the standard error of the mean of n noisy values
    shift = ResolutionShift.between(16, 64)
    assert shift.alpha == 2.0
    m = shift.on_line(TIMES)
    assert torch.allclose(m / (1 - m) / 8, TIMES / (1 - TIMES) / 4)


def test_a_shifted_logit_normal_is_one_with_a_higher_mean():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    shifted = ResolutionShift(alpha=6.0).on_line(LogitNormal().from_uniform(u))
    assert torch.allclose(shifted, LogitNormal(mean=math.log(6.0)).from_uniform(u))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ResolutionShift(alpha=0.0), "shift=0.0 must be a positive number"),
        (lambda: ResolutionShift(alpha=math.nan), "shift=nan must be a positive number"),
        (lambda: ResolutionShift.between(0, 4), "from 0 to 4 tokens; both must be at least 1"),
    ],
)
def test_what_is_no_shift_is_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
