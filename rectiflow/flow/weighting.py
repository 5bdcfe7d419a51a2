"""How much a squared error at t counts. Notation: `docs/notation.md`.

Source: arXiv 2403.03206, sections 2 and 3 (the weights w_t) and equation 18.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow.path import Coefficients
from rectiflow.flow.prediction import Prediction
from rectiflow.flow.timesteps import TimestepSampler


class Weighting(ABC):
    """A non-negative factor per sample on the squared error of the network's own output."""

    @abstractmethod
    def __str__(self) -> str:
        """The weighting's name, as `parse_formulation` reads it; "unit" is left out there."""

    @abstractmethod
    def weight(
        self, t: Float[Tensor, " b"], at: Coefficients, prediction: Prediction
    ) -> Float[Tensor, " b"]:
        """w [b] at t in (0, 1) for a network that puts out `prediction`."""


@dataclass(frozen=True, kw_only=True)
class UnitWeighting(Weighting):
    """Every t counts the same; the timestep sampler alone decides where training looks."""

    def __str__(self) -> str:
        return "unit"

    def weight(
        self, t: Float[Tensor, " b"], at: Coefficients, prediction: Prediction
    ) -> Float[Tensor, " b"]:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class ErrorOf(Weighting):
    """The squared error counts as it would if the network put out `measured` instead.

    At a given z_t all outputs' errors are multiples of one another, by the predictions'
    determinants, so the factor is their ratio squared.
    """

    measured: Prediction

    def __str__(self) -> str:
        return str(self.measured)

    def weight(
        self, t: Float[Tensor, " b"], at: Coefficients, prediction: Prediction
    ) -> Float[Tensor, " b"]:
        return (self.measured.determinant(at) / prediction.determinant(at)).square()


@dataclass(frozen=True, kw_only=True)
class DensityWeighting(Weighting):
    """w = pi(t): uniform times weighted so equal times drawn from pi in expectation (eq. 18)."""

    density_of: TimestepSampler

    def __str__(self) -> str:
        return str(self.density_of)

    def weight(
        self, t: Float[Tensor, " b"], at: Coefficients, prediction: Prediction
    ) -> Float[Tensor, " b"]:
        return self.density_of.density(t)
