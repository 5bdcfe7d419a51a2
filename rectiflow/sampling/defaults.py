"""How a model is sampled unless asked otherwise: what recipes, model cards and settings share.

A recipe says it before training, the finished model's card repeats it, and drawing begins from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from rectiflow.base.config import LATER
from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift
from rectiflow.sampling.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    NoGuidance,
    check_guidance_scale,
)
from rectiflow.sampling.names import spell
from rectiflow.sampling.schedule import LinearGrid, TimeGrid
from rectiflow.sampling.solvers import Euler, Solver


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Steps, solver, time grid and guidance. The shift is apart: in a recipe it is training's too.

    `guidance_scale` is how strongly `guidance` guides; 1 means not at all and halves the work.

    Raises:
        ConfigError: a number is out of range, or they do not go together.
    """

    num_steps: int = 28
    guidance_scale: float = 3.0
    solver: Solver = field(default=Euler(), metadata=LATER)
    grid: TimeGrid = field(default=LinearGrid(), metadata=LATER)
    guidance: Guidance = field(default=ClassifierFreeGuidance(), metadata=LATER)

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= 1000:
            raise ConfigError(f"num_steps={self.num_steps} must be from 1 to 1000; 20–50 is usual")
        check_guidance_scale(self.guidance_scale)
        if self.guidance.num_resting_steps(self.guidance_scale) >= self.num_steps:
            raise ConfigError(
                f"{spell(self.guidance)} leaves none of num_steps={self.num_steps} steps; take more"
            )
        guides = not all(isinstance(phase, NoGuidance) for phase in self.guidance.phases)
        if not guides and self.guidance_scale != 1.0:
            raise ConfigError(
                f"guidance_scale={self.guidance_scale:g} does not go with guidance "
                f"{spell(self.guidance)}; give 1"
            )

    @staticmethod
    def of(other: SamplingDefaults) -> SamplingDefaults:
        """What a card or settings, which say more, have in common with a recipe."""
        return SamplingDefaults(
            **{each.name: getattr(other, each.name) for each in fields(SamplingDefaults)}
        )

    def check_shift(self, shift: ResolutionShift) -> None:
        """Pass if the grid can be moved so.

        Raises:
            ConfigError: the grid has a shift of its own.
        """
        self.grid.times(self.num_steps, shift=shift, num_tokens=1)
