"""Guidance that corrects classifier-free guidance's direction or length, sample by sample.

Sources: arXiv 2410.02416 (adaptive projected guidance) and arXiv 2503.18886 (CFG-Zero*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.sampling.guidance import Guidance, Velocities, extrapolate, inner_product

#: Keeps a division by a length of zero from happening.
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedGuidance(Guidance):
    """v = v_cond + (scale − 1)·(limited difference, without its part along the estimated data).

    The difference v_cond − v_null, as one of estimated data x0 = z − t·v_cond, is shortened to at
    most `norm_threshold`; its part parallel to x0, which oversaturates, counts `eta` times. With
    eta = 1 and a threshold beyond any length this is classifier-free guidance. It goes without the
    paper's momentum, which would tie the field to the steps taken in it. Source: arXiv 2410.02416.
    """

    eta: float = 0.0
    norm_threshold: float = 15.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise ConfigError(f"eta={self.eta} must be a finite number; 0 to 1 is usual")
        if not 0.0 < self.norm_threshold < math.inf:
            raise ConfigError(
                f"norm_threshold={self.norm_threshold} must be a finite number above 0; 15 is "
                "usual, and 1e6 limits nothing"
            )

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        conditional = velocities["conditional"]
        difference = conditional - velocities["null"]
        # As data it is t times as long; in this form t = 0 does no harm.
        length = t * inner_product(difference, difference).sqrt()
        difference = difference * (self.norm_threshold / length).clamp(max=1.0)
        x0 = z - t * conditional
        along = inner_product(difference, x0) / (inner_product(x0, x0) + EPSILON) * x0
        return conditional + (scale - 1.0) * (difference + (self.eta - 1.0) * along)


@dataclass(frozen=True, kw_only=True)
class CFGZeroStar(Guidance):
    """v = s·v_null + scale·(v_cond − s·v_null), s = ⟨v_cond, v_null⟩/‖v_null‖².

    s·v_null is the projection of one velocity to the other. The first `zero_init_steps` steps have
    velocity zero: their times drop out of the grid. Source: arXiv 2503.18886.
    """

    zero_init_steps: int = 1

    def __post_init__(self) -> None:
        if self.zero_init_steps < 0:
            raise ConfigError(f"zero_init_steps={self.zero_init_steps} must be at least 0")

    def num_resting_steps(self, scale: float) -> int:
        return 0 if scale == 1.0 else self.zero_init_steps

    @property
    def phases(self) -> tuple[Guidance, ...]:
        return (replace(self, zero_init_steps=0),)

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        conditional, null = velocities["conditional"], velocities["null"]
        fit = inner_product(conditional, null) / (inner_product(null, null) + EPSILON)
        return extrapolate(fit * null, conditional, scale)
