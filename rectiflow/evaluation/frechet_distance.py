"""Fréchet distance between Gaussians fitted to two sets of features; on CLIP features, FID-CLIP.

|m1 − m2|² + tr(C1 + C2 − 2·(C1·C2)^½), computed by torchmetrics in float64. It is biased upwards
by an amount that falls as 1/n, so numbers compare only at equal sample counts: rank with it, and
see `kernel_distance` for small n. Sources: arXiv 1706.08500; arXiv 2403.03206, section 5.1 (on
CLIP features).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from rectiflow.evaluation.features import Distance, Features, check_comparable, check_enough


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """The distance to a reference, whose mean and covariance are computed once.

    Call it with the features of the pictures to judge.

    Raises:
        ValueError: a side has fewer than 2 vectors, or the features are of another backbone.
    """

    reference: Features

    def __post_init__(self) -> None:
        check_enough("Fréchet", self.reference)

    def __call__(self, samples: Features) -> Distance:
        check_enough("Fréchet", samples)
        check_comparable(samples, self.reference)
        self._metric.reset()
        self._metric.update(_float64(samples), real=False)
        return Distance(
            metric="Fréchet",
            value=float(self._metric.compute()),
            num_samples=len(samples),
            num_reference=len(self.reference),
            backbone=self.reference.backbone,
        )

    @cached_property
    def _metric(self) -> Any:
        # Takes seconds to import, and only those who measure need it.
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(
            feature=_AlreadyFeatures(self.reference.vectors.shape[1]), reset_real_features=False
        )
        metric.update(_float64(self.reference), real=True)
        return metric


def frechet_distance(samples: Features, reference: Features) -> Distance:
    """Fréchet distance of two sets of features; `FrechetDistance` where the reference is reused.

    Raises:
        ValueError: a side has fewer than 2 vectors, or the backbones differ.
    """
    return FrechetDistance(reference=reference)(samples)


class _AlreadyFeatures(nn.Module):
    """Stands where torchmetrics expects a network: what comes in are its features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _float64(features: Features) -> Tensor:
    # Products are summed before the mean is taken off: float32 would lose the difference.
    return features.vectors.detach().cpu().double()
