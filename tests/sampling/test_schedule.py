"""Laws of time grids, and that two of them are those of diffusers."""

import math
import re

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift, parse_formulation, rectified_flow
from rectiflow.flow.shift import NO_SHIFT
from rectiflow.sampling import (
    DynamicShiftGrid,
    LinearGrid,
    ReleasedGrid,
    TimeGrid,
    TrainingTimesGrid,
    linear_times,
    times_for,
)

SHIFTED_GRIDS = (LinearGrid(), TrainingTimesGrid(), ReleasedGrid())
GRIDS = (*SHIFTED_GRIDS, DynamicShiftGrid())
by_name = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
SHIFT_3 = ResolutionShift(alpha=3.0)


@by_name
@pytest.mark.parametrize("num_steps", [1, 2, 28, 1000])
def test_times_fall_from_noise_to_data(grid: TimeGrid, num_steps: int) -> None:
    shifts = (0.5, 1.0, 3.0) if grid in SHIFTED_GRIDS else (1.0,)
    for alpha in shifts:
        shift = ResolutionShift(alpha=alpha)
        times = times_for(rectified_flow(), num_steps, shift=shift, grid=grid, num_tokens=1024)
        assert times.dtype == torch.float32
        assert len(times) == num_steps + 1
        assert times[0] == 1.0
        assert times[-1] == 0.0
        assert (times.diff() < 0).all()


def test_a_shift_moves_what_lies_between_the_ends() -> None:
    assert linear_times(2, shift=SHIFT_3)[1].item() == pytest.approx(0.75)


@pytest.mark.parametrize("grid", SHIFTED_GRIDS, ids=lambda grid: type(grid).__name__)
def test_a_shift_and_its_inverse_leave_a_grid_that_is_shifted_once(grid: TimeGrid) -> None:
    times = grid.times(20, shift=SHIFT_3, num_tokens=None)
    plain = grid.times(20, shift=NO_SHIFT, num_tokens=None)
    is_once = torch.allclose(SHIFT_3.inverse().on_line(times), plain, atol=1e-12)
    assert is_once == (grid != ReleasedGrid())


def test_ends_of_the_released_grid_and_of_the_clean_one() -> None:
    released = ReleasedGrid().times(28, shift=SHIFT_3, num_tokens=None)
    clean = TrainingTimesGrid().times(28, shift=SHIFT_3, num_tokens=None)
    # As printed by the reference code and by diffusers after `set_shift`.
    assert released[-2].item() == pytest.approx(0.0089286, abs=1e-7)
    assert released[:3].tolist() == pytest.approx([1.0, 0.98738, 0.97411], abs=1e-5)
    assert clean[-3:].tolist() == pytest.approx([0.10595, 0.00299, 0.0], abs=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("num_steps", [1, 4, 28, 40, 50])
def test_the_released_grid_is_that_of_diffusers(num_steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(num_steps)
    ours = times_for(rectified_flow(), num_steps, shift=SHIFT_3, grid=ReleasedGrid())
    torch.testing.assert_close(ours, theirs.sigmas, atol=2e-7, rtol=0)
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0)
    theirs.set_shift(3.0)
    theirs.set_timesteps(num_steps)
    ours = times_for(rectified_flow(), num_steps, shift=SHIFT_3, grid=TrainingTimesGrid())
    torch.testing.assert_close(ours, theirs.sigmas, atol=2e-7, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("num_tokens", [16, 256, 1024, 4096, 6144])
def test_the_dynamic_shift_is_that_of_diffusers(num_tokens: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    mu = calculate_shift(num_tokens)
    assert math.log(DynamicShiftGrid().shift_for(num_tokens).alpha) == pytest.approx(mu)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(28, mu=mu)
    ours = times_for(rectified_flow(), 28, grid=DynamicShiftGrid(), num_tokens=num_tokens)
    torch.testing.assert_close(ours, theirs.sigmas, atol=2e-7, rtol=0)


def test_times_begin_where_the_formulation_does() -> None:
    times = times_for(parse_formulation("eps/rf"), 4, grid=ReleasedGrid())
    assert 0.98 < times[0].item() < 1.0


@by_name
def test_no_grid_has_no_steps(grid: TimeGrid) -> None:
    with pytest.raises(ConfigError, match="num_steps=0 must be at least 1"):
        grid.times(0, shift=NO_SHIFT, num_tokens=256)


def test_the_dynamic_shift_takes_no_other() -> None:
    with pytest.raises(ConfigError, match=re.escape("shift=3 does not go with a grid")):
        DynamicShiftGrid().times(4, shift=SHIFT_3, num_tokens=256)
    with pytest.raises(ConfigError, match="needs num_tokens"):
        DynamicShiftGrid().times(4, shift=NO_SHIFT, num_tokens=None)
