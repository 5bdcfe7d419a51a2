"""Kernel distance (squared MMD) between two sets of features; on CLIP features, CMMD.

k(x, y) = exp(−|x − y|² / 2σ²) on unit vectors, σ = 10, times 1000: the published kernel, features
and scale. The estimator is the unbiased one, so that its mean does not depend on the sample counts;
it may be slightly negative. The published code has the biased one, which for sets of m and n is
larger by 1000·((1 − mean k(x, x'))/m + (1 − mean k(y, y'))/n).
Sources: arXiv 2401.09603, section 4; Gretton et al. 2012, lemma 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rectiflow.evaluation.features import Distance, Features, check_comparable, check_enough

SCALE = 1000.0
#: Rows of the kernel matrix that are held at once.
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The distance to a reference, whose similarity to itself is computed once.

    Unit vectors are at most 2 apart, so at σ = 10 the kernel is nearly linear and the distance is
    nearly SCALE·|mean x − mean y|² / σ²: it sees shifts of the mean, and hardly any change of
    spread. A σ of the order of the vectors' own distances (0.5 to 1) sees both.

    The estimate is unbiased for sets drawn independently. Where each sample has its twin in the
    reference, as a reconstruction has its original, it comes out too low.

    Raises:
        ValueError: sigma is not positive, a side has fewer than 2 vectors, or the features are of
            another backbone.
    """

    reference: Features
    sigma: float = 10.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}; the kernel's width must be positive")
        check_enough("kernel", self.reference)

    def __call__(self, samples: Features) -> Distance:
        check_enough("kernel", samples)
        check_comparable(samples, self.reference)
        x, y = _unit(samples), self._unit_reference
        # MMD² = mean k(x, x') + mean k(y, y') − 2·mean k(x, y), where x' ≠ x and y' ≠ y.
        # The sums are of k − 1 (the ones cancel), which keeps digits where k is close to 1.
        value = (
            self._own_mean(x)
            + self._reference_mean
            - 2.0 * self._sum(x, y) / (len(samples) * len(self.reference))
        )
        return Distance(
            metric=f"kernel (σ = {self.sigma:g})",
            value=SCALE * value,
            num_samples=len(samples),
            num_reference=len(self.reference),
            backbone=self.reference.backbone,
        )

    @cached_property
    def _unit_reference(self) -> Float[Tensor, "n d"]:
        return _unit(self.reference)

    @cached_property
    def _reference_mean(self) -> float:
        return self._own_mean(self._unit_reference)

    def _own_mean(self, x: Float[Tensor, "n d"]) -> float:
        # A vector's similarity to itself is k − 1 = 0, so only the count leaves it out.
        return self._sum(x, x) / (len(x) * (len(x) - 1))

    def _sum(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
        """Σ k(x_i, y_j) − 1, with |x − y|² = 2 − 2·x·y for unit vectors."""
        return sum(
            float(torch.expm1((part @ y.T - 1.0) / self.sigma**2).sum()) for part in x.split(_BLOCK)
        )


def kernel_distance(samples: Features, reference: Features, *, sigma: float = 10.0) -> Distance:
    """Squared MMD of two sets of features; `KernelDistance` where the reference is reused.

    Raises:
        ValueError: as `KernelDistance`.
    """
    return KernelDistance(reference=reference, sigma=sigma)(samples)


def _unit(features: Features) -> Float[Tensor, "n d"]:
    return F.normalize(features.vectors.detach().cpu().double(), dim=-1)
