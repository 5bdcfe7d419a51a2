"""How a picture is drawn from noise, apart from model, prompt and seed.

On the walk of a prompt: stands in each model's card as its default, and in each picture's metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rectiflow.base.config import LATER
from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift
from rectiflow.sampling import (
    ClassifierFreeGuidance,
    Euler,
    Guidance,
    LinearGrid,
    NoGuidance,
    Solver,
    TimeGrid,
    parse_grid,
    parse_guidance,
    parse_solver,
    spell,
)
from rectiflow.sampling.guidance import check_guidance_scale


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Solver, time grid, guidance and size of a picture.

    `shift` moves the grid towards noise (arXiv 2403.03206, equation 23); 1 leaves it where it is.
    `guidance_scale` is how strongly `guidance` guides; 1 means not at all and halves the work.
    """

    num_steps: int = 28
    guidance_scale: float = 4.0
    shift: float = 1.0
    height_px: int = 64
    width_px: int = 64
    solver: Solver = field(default=Euler(), metadata=LATER)
    grid: TimeGrid = field(default=LinearGrid(), metadata=LATER)
    guidance: Guidance = field(default=ClassifierFreeGuidance(), metadata=LATER)

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= 1000:
            raise ConfigError(f"num_steps={self.num_steps} must be from 1 to 1000; 20–50 is usual")
        check_guidance_scale(self.guidance_scale)
        shift = ResolutionShift(alpha=self.shift)  # says what is wrong with it
        for name, side_px in (("height_px", self.height_px), ("width_px", self.width_px)):
            if side_px < 1:
                raise ConfigError(f"{name}={side_px} must be positive")
        # The same for a shift that does not go with the grid.
        self.grid.times(self.num_steps, shift=shift, num_tokens=1)
        if self.guidance.num_resting_steps >= self.num_steps:
            raise ConfigError(
                f"{spell(self.guidance)} leaves none of num_steps={self.num_steps} steps; take more"
            )
        if isinstance(self.guidance, NoGuidance) and self.guidance_scale != 1.0:
            raise ConfigError(
                f"guidance_scale={self.guidance_scale:g} does not go with guidance none; give 1"
            )

    def __str__(self) -> str:
        """As tables and reports say it; what is usual is not told."""
        text = (
            f"{self.width_px}×{self.height_px} px, {self.num_steps} steps, guidance "
            f"{self.guidance_scale:g}, shift {self.shift:g}"
        )
        usual = SamplingSettings()
        for name in ("solver", "grid", "guidance"):
            value = getattr(self, name)
            if value != getattr(usual, name):
                text += f", {name} {spell(value)}"
        return text


#: What `rectiflow sample` and prompt lists call each of the settings, the field that it is, and how
#: it is read.
SETTING_NAMES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "steps": ("num_steps", int),
    "guidance_scale": ("guidance_scale", float),
    "shift": ("shift", float),
    "height": ("height_px", int),
    "width": ("width_px", int),
    "solver": ("solver", parse_solver),
    "grid": ("grid", parse_grid),
    "guidance": ("guidance", parse_guidance),
}
