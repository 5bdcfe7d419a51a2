"""Guidance: which velocities a step needs, and how they combine to one.

A guidance is a way to combine; how strongly, the guidance_scale, is given with each call. Scale 1
is the conditional velocity and evaluates nothing else. What shares a network goes through it as one
batch.
Source: classifier-free guidance, arXiv 2207.12598, in the form of arXiv 2403.03206, section 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow.prediction import per_sample
from rectiflow.models.frame import Backbone, Network

#: A velocity that can be asked for: of the prompts, of the empty prompt, or of the prompts by a
#: network that is worse than the model's.
Branch = Literal["conditional", "null", "weak"]
Velocities = Mapping[Branch, Tensor]


class Guidance(ABC):
    """Chooses the velocities that a step needs and combines them."""

    def num_resting_steps(self, scale: float) -> int:
        """So many steps at the beginning leave z as it is: their times drop out of the grid.

        None where drawing begins without guidance.
        """
        return 0

    @property
    def weaker_model(self) -> str | None:
        """The name of a second model that it contrasts with."""
        return None

    @property
    def phases(self) -> tuple[Guidance, ...]:
        """Guidances without regard to time whose branches are all that this one ever asks for."""
        return (self,)

    def branches(self, scale: float, t: Float[Tensor, ""]) -> tuple[Branch, ...]:
        """What to evaluate at t; alone, "conditional" is the result."""
        return ("conditional",) if scale == 1.0 else ("conditional", "null")

    @abstractmethod
    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        """One velocity at (z, t) from those of `branches`."""

    def uses_null(self, scale: float) -> bool:
        """Whether it asks for the branch "null" at some time, so that a negative prompt counts."""
        any_time = torch.tensor(0.5)
        return any(
            "null" in phase.branches(1.0 if isinstance(phase, NoGuidance) else scale, any_time)
            for phase in self.phases
        )

    def weak_network(self, backbone: Network, weaker: Network | None) -> Network:
        """The network of the branch "weak", from the model's and a weaker model's, if there is one.

        Raises:
            ConfigError: it cannot be had.
        """
        raise ConfigError(f"{type(self).__name__} contrasts with no weaker network")

    def check_backbone(self, backbone: Backbone) -> None:  # noqa: B027
        """Pass if the backbone has what the guidance disturbs, to tell before a step asks for it.

        Raises:
            ConfigError: it has not.
        """


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Guidance):
    """The conditional velocity as it is."""

    def branches(self, scale: float, t: Float[Tensor, ""]) -> tuple[Branch, ...]:
        if scale != 1.0:
            raise ConfigError(
                f"guidance_scale={scale:g} does not go with NoGuidance; give 1, or a guidance"
            )
        return ("conditional",)

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        return velocities["conditional"]


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance):
    """v = v_null + scale·(v_cond − v_null)."""

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        if "null" not in velocities:
            return velocities["conditional"]
        return extrapolate(velocities["null"], velocities["conditional"], scale)


@dataclass(frozen=True, kw_only=True)
class IntervalGuidance(Guidance):
    """Another guidance where low ≤ t ≤ high, and elsewhere none: the conditional velocity alone.

    Source: arXiv 2404.07724, with times for noise levels.
    """

    low: float = 0.2
    high: float = 0.9
    inner: Guidance = field(default_factory=ClassifierFreeGuidance)

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)

    def num_resting_steps(self, scale: float) -> int:
        return self.inner.num_resting_steps(scale) if self.high == 1.0 else 0

    @property
    def weaker_model(self) -> str | None:
        return self.inner.weaker_model

    @property
    def phases(self) -> tuple[Guidance, ...]:
        return (*self.inner.phases, NoGuidance())

    def branches(self, scale: float, t: Float[Tensor, ""]) -> tuple[Branch, ...]:
        is_guided = is_within(t, self.low, self.high)
        return self.inner.branches(scale, t) if is_guided else ("conditional",)

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        return self.inner.combine(velocities, scale, z, t)

    def weak_network(self, backbone: Network, weaker: Network | None) -> Network:
        return self.inner.weak_network(backbone, weaker)

    def check_backbone(self, backbone: Backbone) -> None:
        self.inner.check_backbone(backbone)


@dataclass(frozen=True, kw_only=True)
class RescaledGuidance(Guidance):
    """Another guidance, whose result v is brought towards the conditional's standard deviation.

    v ← amount·v·std(v_cond)/std(v) + (1 − amount)·v, deviations over a whole sample.
    Source: arXiv 2305.08891, section 3.4.
    """

    amount: float = 0.7
    inner: Guidance = field(default_factory=ClassifierFreeGuidance)

    def __post_init__(self) -> None:
        if not 0.0 <= self.amount <= 1.0:
            raise ConfigError(
                f"amount={self.amount} must be from 0 (nothing) to 1 (all of the rescaling)"
            )

    def num_resting_steps(self, scale: float) -> int:
        return self.inner.num_resting_steps(scale)

    @property
    def weaker_model(self) -> str | None:
        return self.inner.weaker_model

    @property
    def phases(self) -> tuple[Guidance, ...]:
        return tuple(
            phase if isinstance(phase, NoGuidance) else replace(self, inner=phase)
            for phase in self.inner.phases
        )

    def branches(self, scale: float, t: Float[Tensor, ""]) -> tuple[Branch, ...]:
        return self.inner.branches(scale, t)

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        guided = self.inner.combine(velocities, scale, z, t)
        wanted, found = (v.flatten(1).std(dim=1) for v in (velocities["conditional"], guided))
        factor = self.amount * wanted / found + (1.0 - self.amount)
        # One velocity everywhere has no deviation to bring anywhere.
        factor = torch.where(found > 0.0, factor, 1.0)
        return per_sample(factor, guided) * guided

    def weak_network(self, backbone: Network, weaker: Network | None) -> Network:
        return self.inner.weak_network(backbone, weaker)

    def check_backbone(self, backbone: Backbone) -> None:
        self.inner.check_backbone(backbone)


def extrapolate(
    start: Float[Tensor, "b ..."], through: Float[Tensor, "b ..."], scale: float
) -> Float[Tensor, "b ..."]:
    """start + scale·(through − start)."""
    return start + scale * (through - start)


def inner_product(
    first: Float[Tensor, "b ..."], second: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """Of each sample, [b 1 … 1]."""
    return per_sample((first * second).flatten(1).sum(dim=1), first)


def check_guidance_scale(scale: float) -> None:
    """Pass if it is one.

    Raises:
        ConfigError: it is not a number of at least 0 that is finite in float32.
    """
    if not 0 <= scale <= torch.finfo(torch.float32).max:
        raise ConfigError(
            f"guidance_scale={scale} must be a finite number ≥ 0 (1 is no guidance, 3–7 is usual)"
        )


def is_within(t: Float[Tensor, ""], low: float, high: float) -> bool:
    """Whether low ≤ t ≤ high, in the dtype of t, so that a grid's own times may be ends."""
    return bool((t >= low) & (t <= high))


def check_interval(low: float, high: float) -> None:
    """Pass if low and high are an interval of times.

    Raises:
        ConfigError: they are not.
    """
    if not 0.0 <= low < high <= 1.0:
        raise ConfigError(
            f"low={low} and high={high} are no interval of times; they go from 0 (data) to 1 "
            "(noise), and low is below high"
        )
