"""Probability paths: z_t = alpha(t)·x0 + sigma(t)·eps from data (t = 0) to noise (t = 1).

Notation: `docs/notation.md`; alpha and sigma are the paper's a_t and b_t.
Source: arXiv 2403.03206, equations 1–3 and section 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """alpha, sigma and their derivatives by t, one value per sample."""

    alpha: Float[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    d_alpha: Float[Tensor, " b"]
    d_sigma: Float[Tensor, " b"]


class ProbabilityPath(ABC):
    """A differentiable pair (alpha, sigma) of t whose signal-to-noise ratio falls with t."""

    name: str

    @abstractmethod
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        """Coefficients at t in [0, 1]."""

    def log_snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """lambda_t = log(alpha²/sigma²); +inf at t = 0 and −inf at t = 1 where a path is exact."""
        at = self.coefficients(t)
        return 2.0 * (torch.log(at.alpha) - torch.log(at.sigma))


@dataclass(frozen=True, kw_only=True)
class RectifiedFlowPath(ProbabilityPath):
    """Straight lines: z_t = (1 − t)·x0 + t·eps (arXiv 2403.03206, equation 13)."""

    name = "rf"

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(alpha=1.0 - t, sigma=t, d_alpha=-one, d_sigma=one)
