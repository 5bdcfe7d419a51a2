"""How a picture is drawn from noise, apart from model, prompt and seed.

On the walk of a prompt: stands in each model's card as its default, and in each picture's metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift
from rectiflow.sampling import (
    SamplingDefaults,
    parse_grid,
    parse_guidance,
    parse_solver,
    spell,
)


@dataclass(frozen=True, kw_only=True)
class CardSampling(SamplingDefaults):
    """How the model's maker would sample it, at any size.

    `shift` moves the grid towards noise (arXiv 2403.03206, equation 23); 1 leaves it where it is.
    """

    shift: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shift(ResolutionShift(alpha=self.shift))


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(CardSampling):
    """Solver, time grid, guidance and size of a picture."""

    guidance_scale: float = 4.0
    shift: float = 1.0
    height_px: int = 64
    width_px: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, side_px in (("height_px", self.height_px), ("width_px", self.width_px)):
            if side_px < 1:
                raise ConfigError(f"{name}={side_px} must be positive")

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
