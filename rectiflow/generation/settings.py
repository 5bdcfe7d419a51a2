"""How a picture is drawn from noise, apart from model, prompt and seed.

On the walk of a prompt: stands in each model's card as its default, and in each picture's metadata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Solver steps, guidance, time shift and size of a picture.

    `shift` moves solver steps towards noise (arXiv 2403.03206, equation 23); 1 leaves them evenly
    spaced. `guidance_scale` 1 means none and halves the work.
    """

    num_steps: int = 28
    guidance_scale: float = 4.0
    shift: float = 1.0
    height_px: int = 64
    width_px: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= 1000:
            raise ConfigError(f"num_steps={self.num_steps} must be from 1 to 1000; 20–50 is usual")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise ConfigError(
                f"guidance_scale={self.guidance_scale} must be a finite number ≥ 0 "
                "(1 is no guidance, 3–7 is usual)"
            )
        ResolutionShift(alpha=self.shift)  # says what is wrong with it
        for name, side_px in (("height_px", self.height_px), ("width_px", self.width_px)):
            if side_px < 1:
                raise ConfigError(f"{name}={side_px} must be positive")
