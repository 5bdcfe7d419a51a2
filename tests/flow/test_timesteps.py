"""Laws of timestep samplers."""

import math

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import CosinePath, CosMap, LogitNormal, Mode, RectifiedFlowPath, Uniform
from rectiflow.flow.timesteps import TimestepSampler

SAMPLERS = [
    Uniform(),
    LogitNormal(),
    LogitNormal(mean=0.5, std=0.6),
    LogitNormal(mean=-1.0, std=1.8),
    Mode(scale=-1.0),
    Mode(scale=0.0),
    Mode(scale=1.29),
    CosMap(),
]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=str)


@each_sampler
def test_density_integrates_to_one_and_fits_samples(sampler: TimestepSampler):
    # Steps that shrink towards both ends, where a density may be infinite.
    v = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)
    edges = v * v * (3.0 - 2.0 * v)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = sampler.density(middles) * edges.diff()
    assert abs(mass.sum().item() - 1.0) < 1e-3
    places = (middles * 20).long().clamp(max=19)
    expected = torch.zeros(20, dtype=torch.float64).index_add(0, places, mass)
    t = sampler.sample(200_000, torch.Generator().manual_seed(1))
    observed = torch.histc(t, bins=20, min=0.0, max=1.0).double() / len(t)
    assert (observed - expected).abs().max() < 4e-3


@each_sampler
def test_density_is_the_slope_of_the_quantiles(sampler: TimestepSampler):
    u, step = torch.linspace(0.01, 0.99, 50, dtype=torch.float64), 1e-6
    slope = (sampler.from_uniform(u + step) - sampler.from_uniform(u - step)) / (2 * step)
    density = sampler.density(sampler.from_uniform(u))
    assert torch.allclose(slope * density, torch.ones_like(u), atol=1e-5)


@each_sampler
def test_quantiles_are_increasing_and_stay_inside(sampler: TimestepSampler):
    u = torch.tensor([2.0**-24, 0.1, 0.5, 0.9, 1 - 2.0**-24])
    t = sampler.from_uniform(u)
    assert t.dtype == torch.float32
    assert (t.diff() > 0).all()
    assert t[0] > 0
    assert t[-1] < 1


#: Those of the paper's grid at its corners, and some beyond it.
EXTREME = [
    *(LogitNormal(mean=mean, std=std) for mean in (-1.0, 1.0) for std in (0.2, 2.0)),
    *(Mode(scale=scale) for scale in (-1.0, 1.75)),
    LogitNormal(std=4.0),
    LogitNormal(mean=200.0),
    LogitNormal(mean=-200.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", [*SAMPLERS, *EXTREME], ids=str)
def test_no_draw_is_an_end(sampler: TimestepSampler, dtype):
    # What torch.rand and the counter-based uniforms give next to the ends.
    steps = torch.arange(1, 200, dtype=dtype)
    for step in (2.0**-23, 2.0**-24):
        tiny = torch.full((1,), torch.finfo(torch.float32).tiny, dtype=dtype)
        t = sampler.from_uniform(torch.cat([tiny, steps * step, 1 - steps * step]))
        assert t.dtype == dtype
        assert ((t > 0) & (t < 1)).all()


@each_sampler
def test_what_is_no_end_is_left_to_the_last_bit(sampler: TimestepSampler):
    u = torch.linspace(0.001, 0.999, 1001)
    assert torch.equal(sampler.from_uniform(u), sampler.from_uniform(u.double()).float())


def test_mode_without_scale_is_uniform():
    u = torch.linspace(0.1, 0.9, 9)
    assert torch.equal(Mode(scale=0.0).from_uniform(u), u)


def test_the_steepest_mode_is_still_increasing():
    u = torch.linspace(0.0, 1.0, 10_001, dtype=torch.float64)
    for scale in Mode.SCALE_RANGE:
        assert (Mode(scale=scale).from_uniform(u).diff() >= 0).all()


def test_cosmap_gives_rectified_flow_the_log_snr_of_the_cosine_path():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    mapped = RectifiedFlowPath().log_snr(CosMap().from_uniform(u))
    assert torch.allclose(mapped, CosinePath().log_snr(u), atol=1e-9)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LogitNormal(std=0.0), "lognorm std=0.0 must be positive"),
        (lambda: LogitNormal(std=math.nan), "lognorm std=nan must be positive"),
        (lambda: LogitNormal(mean=math.inf), "lognorm mean=inf must be a finite number"),
        (lambda: Mode(scale=1.76), r"mode scale=1.76 is out of range; .* -1 to 2/\(π − 2\) = 1.75"),
        (lambda: Mode(scale=-1.01), "mode scale=-1.01 is out of range"),
        (lambda: Mode(scale=math.nan), "mode scale=nan is out of range"),
    ],
)
def test_parameters_out_of_range_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
