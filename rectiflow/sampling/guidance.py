"""Guidance: which conditionings the backbone sees, and how its outputs combine.

All conditionings of one step go through the backbone as one batch.
Source: classifier-free guidance, arXiv 2207.12598, in the form of arXiv 2403.03206, section 5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning


class Guidance(ABC):
    """Chooses the conditionings of a step and combines the velocities they give."""

    @abstractmethod
    def conditionings(
        self, conditioning: Conditioning, null: Conditioning
    ) -> tuple[Conditioning, ...]:
        """The batches to evaluate, each as long as `conditioning`."""

    @abstractmethod
    def combine(
        self, velocities: tuple[Float[Tensor, "b ..."], ...], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        """One velocity from those of `conditionings`, in the same order."""


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Guidance):
    """The conditional velocity as it is."""

    def conditionings(
        self, conditioning: Conditioning, null: Conditioning
    ) -> tuple[Conditioning, ...]:
        return (conditioning,)

    def combine(
        self, velocities: tuple[Float[Tensor, "b ..."], ...], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        return velocities[0]


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance):
    """v = v_null + guidance_scale·(v_cond − v_null); scale 1 is the conditional velocity."""

    guidance_scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise ConfigError(
                f"guidance_scale={self.guidance_scale} must be a finite number ≥ 0 "
                "(1 is no guidance, 3–7 is usual)"
            )

    def conditionings(
        self, conditioning: Conditioning, null: Conditioning
    ) -> tuple[Conditioning, ...]:
        return (conditioning, null)

    def combine(
        self, velocities: tuple[Float[Tensor, "b ..."], ...], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        conditional, unconditional = velocities
        return unconditional + self.guidance_scale * (conditional - unconditional)
