"""What a frozen network makes of pictures or texts, and the distance between two sets of it.

Vectors are computed once for a set of pictures and serve every metric on features: `clip_score`,
`frechet_distance`, `kernel_distance`. Each number keeps its sample counts and its backbone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """One vector a picture or text, as the network's last layer gives it (not of unit length).

    `backbone` names the network and its weights; features of two backbones do not compare.

    Raises:
        ValueError: there is no vector, or a value that is not finite.
    """

    vectors: Float[Tensor, "n d"]
    backbone: str

    def __post_init__(self) -> None:
        if len(self.vectors) == 0:
            raise ValueError(f"there are no features of {self.backbone}; give at least one picture")
        if not bool(torch.isfinite(self.vectors).all()):
            raise ValueError(
                f"features of {self.backbone} are not finite; the network's weights are damaged, "
                "or its numbers too large for its type"
            )

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance between two sets of features, with all that its size depends on."""

    metric: str
    value: float
    num_samples: int
    num_reference: int
    backbone: str

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.4g} (n = {self.num_samples} against "
            f"{self.num_reference}, {self.backbone})"
        )


def check_comparable(one: Features, other: Features) -> None:
    """Pass when the features come from one backbone.

    Raises:
        ValueError: they do not.
    """
    if (one.backbone, one.vectors.shape[1]) != (other.backbone, other.vectors.shape[1]):
        raise ValueError(
            f"features of {one.backbone} ({one.vectors.shape[1]} wide) and of {other.backbone} "
            f"({other.vectors.shape[1]} wide) do not compare; embed both with one network"
        )


def check_enough(metric: str, features: Features) -> None:
    """Pass when a spread can be estimated at all.

    Raises:
        ValueError: there are fewer than 2 vectors.
    """
    if len(features) < 2:
        raise ValueError(
            f"the {metric} distance needs at least 2 pictures on each side, got {len(features)}"
        )
