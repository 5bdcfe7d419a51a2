"""How much a squared error at t counts. Notation: `docs/notation.md`.

Source: arXiv 2403.03206, section 2 (the weights w_t) and equation 18.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow.path import Coefficients


class Weighting(ABC):
    """A non-negative factor per sample on the squared error of the network's own output."""

    @abstractmethod
    def weight(self, t: Float[Tensor, " b"], at: Coefficients) -> Float[Tensor, " b"]:
        """w [b] at t in (0, 1)."""


@dataclass(frozen=True, kw_only=True)
class UnitWeighting(Weighting):
    """Every t counts the same; the timestep sampler alone decides where training looks."""

    def weight(self, t: Float[Tensor, " b"], at: Coefficients) -> Float[Tensor, " b"]:
        return torch.ones_like(t)
