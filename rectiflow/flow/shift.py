"""The resolution shift: times moved towards noise where a picture has more to say the same thing.

One object serves training, validation and sampling; a recipe holds it and a model's card keeps it.
Notation: `docs/notation.md`. Source: arXiv 2403.03206, section 5.3.2, equation 23.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow.path import ProbabilityPath


@dataclass(frozen=True, kw_only=True)
class ResolutionShift:
    """t → alpha·t/(1 + (alpha − 1)·t), which lowers the log-SNR by 2·log(alpha); 1 is none."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(
                f"shift={self.alpha} must be a positive number (1 leaves the times as they are)"
            )

    @classmethod
    def between(cls, num_tokens: int, num_target_tokens: int) -> ResolutionShift:
        """From times at n tokens to times of equal uncertainty at m tokens: alpha = sqrt(m/n).

        Raises:
            ConfigError: a number of tokens below 1.
        """
        if min(num_tokens, num_target_tokens) < 1:
            raise ConfigError(
                f"shift from {num_tokens} to {num_target_tokens} tokens; both must be at least 1"
            )
        return cls(alpha=math.sqrt(num_target_tokens / num_tokens))

    def then(self, other: ResolutionShift) -> ResolutionShift:
        """This shift followed by another: the product of both alphas."""
        return ResolutionShift(alpha=self.alpha * other.alpha)

    def inverse(self) -> ResolutionShift:
        """The shift that undoes this one."""
        return ResolutionShift(alpha=1.0 / self.alpha)

    def on_line(self, s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Shift times of straight coordinates, which are rectified flow's own; within [0, 1]."""
        # Near 1 the quotient of two rounded numbers may lie above it.
        return (self.alpha * s / (1.0 + (self.alpha - 1.0) * s)).clamp(max=1.0)

    def along(self, path: ProbabilityPath, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Shift times of any path, by the same change of log-SNR; in float64 where it is curved."""
        if self.alpha == 1.0:
            return t
        if path.is_straight:
            return self.on_line(t)
        return path.time_at_place(self.on_line(path.place_on_line(t.double()))).to(t.dtype)


NO_SHIFT = ResolutionShift()
