"""Time grids: the times at which a solver stops, from noise (1) to data (0).

Times are those of straight coordinates (`flow.path`), for rectified flow its own t.

Source: arXiv 2403.03206, section 5.3.2; the released models' schedulers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow import Formulation, ResolutionShift
from rectiflow.flow.shift import NO_SHIFT

#: The released models were trained at so many times, k/1000.
NUM_TRAINING_TIMES = 1000


class TimeGrid(ABC):
    """num_steps + 1 falling times from 1 to 0."""

    @abstractmethod
    def times(
        self, num_steps: int, *, shift: ResolutionShift, num_tokens: int | None
    ) -> Float[Tensor, " n"]:
        """num_steps + 1 times, 1 = s_0 > … > s_num_steps = 0, in float64.

        `num_tokens` is the number of image tokens, for a grid that depends on it.

        Raises:
            ConfigError: num_steps is below 1, or the grid has no use for a shift or needs tokens.
        """


@dataclass(frozen=True, kw_only=True)
class LinearGrid(TimeGrid):
    """Evenly spaced from 1 to 0, then shifted."""

    def times(
        self, num_steps: int, *, shift: ResolutionShift, num_tokens: int | None
    ) -> Float[Tensor, " n"]:
        return shift.on_line(torch.linspace(1.0, 0.0, _checked(num_steps) + 1, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class TrainingTimesGrid(TimeGrid):
    """Evenly spaced from 1 to the least time of training, 1/1000, then shifted, then 0.

    What the released schedule would be without its second shift; at shift 3 it ends 0.00299, 0.
    """

    def times(
        self, num_steps: int, *, shift: ResolutionShift, num_tokens: int | None
    ) -> Float[Tensor, " n"]:
        return _ending_in_zero(shift.on_line(_evenly_to(1 / NUM_TRAINING_TIMES, num_steps)))


@dataclass(frozen=True, kw_only=True)
class ReleasedGrid(TimeGrid):
    """As the released models are sampled: the least time of training is shifted, and then all are.

    The second shift is on top of the first, which nobody meant and everybody uses; at shift 3 the
    grid ends 0.00893, 0. Source: Stability's reference code; diffusers'
    `FlowMatchEulerDiscreteScheduler`.
    """

    def times(
        self, num_steps: int, *, shift: ResolutionShift, num_tokens: int | None
    ) -> Float[Tensor, " n"]:
        least = torch.tensor([1 / NUM_TRAINING_TIMES], dtype=torch.float64)
        shifted = shift.on_line(least).item()
        return _ending_in_zero(shift.on_line(_evenly_to(shifted, num_steps)))


@dataclass(frozen=True, kw_only=True)
class DynamicShiftGrid(TimeGrid):
    """`TrainingTimesGrid` with a shift of its own, exp(mu), with mu linear in the image tokens.

    mu is 0.5 at 256 tokens and 1.15 at 4096. Source: diffusers, `use_dynamic_shifting`.
    """

    FEW: ClassVar[tuple[int, float]] = (256, 0.5)
    MANY: ClassVar[tuple[int, float]] = (4096, 1.15)

    def shift_for(self, num_tokens: int) -> ResolutionShift:
        """exp(mu) at a number of image tokens."""
        (few, mu_few), (many, mu_many) = self.FEW, self.MANY
        slope = (mu_many - mu_few) / (many - few)
        return ResolutionShift(alpha=math.exp(mu_few + slope * (num_tokens - few)))

    def times(
        self, num_steps: int, *, shift: ResolutionShift, num_tokens: int | None
    ) -> Float[Tensor, " n"]:
        if shift != NO_SHIFT:
            raise ConfigError(
                f"shift={shift.alpha:g} does not go with a grid that takes its shift from the "
                "picture's size; give shift 1, or another grid"
            )
        if num_tokens is None:
            raise ConfigError("a grid that takes its shift from the size needs num_tokens")
        return TrainingTimesGrid().times(
            num_steps, shift=self.shift_for(num_tokens), num_tokens=num_tokens
        )


def linear_times(num_steps: int, *, shift: ResolutionShift = NO_SHIFT) -> Float[Tensor, " n"]:
    """The times of `LinearGrid` in float32."""
    return LinearGrid().times(num_steps, shift=shift, num_tokens=None).float()


def times_for(
    formulation: Formulation,
    num_steps: int,
    *,
    shift: ResolutionShift = NO_SHIFT,
    grid: TimeGrid | None = None,
    num_tokens: int | None = None,
) -> Float[Tensor, " n"]:
    """A grid's times in float32 (`LinearGrid` unless given), begun where the formulation's do.

    Raises:
        ConfigError: as `TimeGrid.times`.
    """
    times = (grid or LinearGrid()).times(num_steps, shift=shift, num_tokens=num_tokens).float()
    high = torch.tensor([formulation.sampling_range[1]], dtype=torch.float64)
    return times.clamp(max=formulation.path.place_on_line(high).item())


def _checked(num_steps: int) -> int:
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps} must be at least 1")
    return num_steps


def _evenly_to(least: float, num_steps: int) -> Float[Tensor, " n"]:
    return torch.linspace(1.0, least, _checked(num_steps), dtype=torch.float64)


def _ending_in_zero(times: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    return torch.cat([times, times.new_zeros(1)])
