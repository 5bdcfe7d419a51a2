"""The learning rate over a run as a pure function of the step.

On the walk of a sample: recipe -> loop -> here -> optimizer. Warm-up follows the SD3 training
setup (arXiv 2403.03206, appendix B.3); the straight decay to zero at the end is the
"warm-up, stable, decay" shape (arXiv 2405.18392, section 3).
"""

import math
from dataclasses import dataclass

from rectiflow.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Trapezoid:
    """Linear warm-up, a constant stretch, and a linear decay to zero.

    `warmup_steps` counts optimizer steps; `decay_fraction` in [0, 1] is the share of the run's
    steps over which the rate falls to zero, counted back from the end.
    """

    warmup_steps: int = 100
    decay_fraction: float = 0.3

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(
                f"schedule.warmup_steps is {self.warmup_steps}; give a number of steps >= 0"
            )
        if not 0.0 <= self.decay_fraction <= 1.0:
            raise ConfigError(
                f"schedule.decay_fraction is {self.decay_fraction}; give a share of the run "
                "between 0 and 1"
            )

    def factor(self, step: int, max_steps: int) -> float:
        """The share in (0, 1] of the peak learning rate at the optimizer step `step` >= 0."""
        warmup = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        decay_steps = self.decay_fraction * max_steps
        decay = (max_steps - step) / decay_steps if decay_steps else 1.0
        return max(0.0, min(1.0, warmup, decay))


def cosine_factor(step: int, max_steps: int, *, warmup_steps: int) -> float:
    """The share in [0, 1] of the peak rate: a linear warm-up, then half a cosine to zero.

    `step` >= 0 counts optimizer steps. The frozen parts are trained with it. Source: arXiv
    1608.03983, equation 5, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * share))
