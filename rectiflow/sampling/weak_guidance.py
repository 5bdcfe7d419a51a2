"""Guidance away from a weaker network: another model, or the same one with parts disturbed.

Sources: arXiv 2406.02507 (autoguidance); Stability's SD3.5 code (skip-layer guidance);
arXiv 2403.17377 (perturbed attention).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone, Network
from rectiflow.models.inpainting import InpaintingNetwork
from rectiflow.models.weakening import perturb_attention, skip_blocks
from rectiflow.sampling.guidance import (
    Branch,
    ClassifierFreeGuidance,
    Guidance,
    Velocities,
    check_interval,
    extrapolate,
    is_within,
)


@dataclass(frozen=True, kw_only=True)
class AutoGuidance(Guidance):
    """v = v_weak + scale·(v_cond − v_weak), both of the prompts; the empty prompt plays no part.

    `weaker` names the weaker model as `rectiflow sample` would: smaller, or trained for less long.
    Source: arXiv 2406.02507.
    """

    weaker: str

    @property
    def weaker_model(self) -> str | None:
        return self.weaker

    def branches(self, scale: float, t: Float[Tensor, ""]) -> tuple[Branch, ...]:
        return ("conditional",) if scale == 1.0 else ("conditional", "weak")

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        return extrapolate(velocities["weak"], velocities["conditional"], scale)

    def weak_network(self, backbone: Network, weaker: Network | None) -> Network:
        if weaker is None:
            raise ConfigError(f"autoguidance needs the weaker model {self.weaker!r}; load it too")
        return weaker


@dataclass(frozen=True, kw_only=True)
class DisturbedGuidance(Guidance):
    """Classifier-free guidance + strength·(v_cond − v_weak) where low ≤ t ≤ high.

    v_weak is the model's own with its blocks `layers`, counted from 0, disturbed.
    """

    layers: tuple[int, ...]
    strength: float
    low: float
    high: float

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if not self.layers:
            raise ConfigError("layers is empty; name at least one block, counted from 0")
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength={self.strength} must be a finite number; 1 to 4 is usual")

    @abstractmethod
    def disturbed(self, backbone: Backbone) -> Network:
        """The backbone with its blocks `layers` disturbed."""

    def check_backbone(self, backbone: Backbone) -> None:
        self.disturbed(backbone)

    @property
    def phases(self) -> tuple[Guidance, ...]:
        return (replace(self, low=0.0, high=1.0), ClassifierFreeGuidance())

    def branches(self, scale: float, t: Float[Tensor, ""]) -> tuple[Branch, ...]:
        others = super().branches(scale, t)
        return (*others, "weak") if is_within(t, self.low, self.high) else others

    def combine(
        self, velocities: Velocities, scale: float, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]
    ) -> Float[Tensor, "b ..."]:
        conditional = guided = velocities["conditional"]
        if "null" in velocities:
            guided = extrapolate(velocities["null"], conditional, scale)
        if "weak" in velocities:
            guided = guided + self.strength * (conditional - velocities["weak"])
        return guided

    def weak_network(self, backbone: Network, weaker: Network | None) -> Network:
        network = backbone.backbone if isinstance(backbone, InpaintingNetwork) else backbone
        if not isinstance(network, Backbone):
            raise ConfigError(
                f"{type(self).__name__} disturbs blocks, and {type(network).__name__} has none"
            )
        disturbed = self.disturbed(network)
        if not isinstance(backbone, InpaintingNetwork):
            return disturbed
        inpainting = backbone

        def widened(z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            return disturbed(inpainting.widened(z_t), t, conditioning)

        return widened


@dataclass(frozen=True, kw_only=True)
class SkipLayerGuidance(DisturbedGuidance):
    """The weak network leaves its blocks `layers` out.

    The defaults are those for SD3.5-medium, whose blocks are 7, 8 and 9: from the second step to a
    fifth of the way at shift 3.
    """

    strength: float = 2.5
    low: float = 0.923
    high: float = 0.996

    def disturbed(self, backbone: Backbone) -> Network:
        return skip_blocks(backbone, self.layers)


@dataclass(frozen=True, kw_only=True)
class PerturbedAttentionGuidance(DisturbedGuidance):
    """The weak network's image tokens do not look at each other in the blocks `layers`.

    Source: arXiv 2403.17377; the default strength is its 3.
    """

    strength: float = 3.0
    low: float = 0.0
    high: float = 1.0

    def disturbed(self, backbone: Backbone) -> Network:
        return perturb_attention(backbone, self.layers)
