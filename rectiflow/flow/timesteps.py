"""Where on the path training looks: distributions of t over (0, 1).

A sampler maps uniform numbers through its quantile function, so that a caller with named,
counter-based uniforms gets the same t at any batch size. Notation: `docs/notation.md`.
Source: arXiv 2403.03206, section 3.1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError


class TimestepSampler(ABC):
    """A density on (0, 1) with a quantile function."""

    @abstractmethod
    def from_uniform(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Quantile function: u in (0, 1) → t in (0, 1), increasing."""

    @abstractmethod
    def density(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """pi(t), integrating to one over (0, 1)."""

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """Draw `num` values of t, float32."""
        tiny = torch.finfo(torch.float32).tiny
        u = torch.rand(num, generator=generator).clamp_(min=tiny)
        return self.from_uniform(u)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimestepSampler):
    """t = sigmoid(mean + std·n), n ~ N(0, 1); vanishes at both ends (equation 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"LogitNormal std={self.std} must be positive")

    def __str__(self) -> str:
        return f"lognorm({self.mean:.2f},{self.std:.2f})"

    def from_uniform(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # n = Phi^-1(u); in float64 because float32 quantiles lose the tails.
        n = torch.special.ndtri(u.double())
        return torch.sigmoid(self.mean + self.std * n).to(u.dtype)

    def density(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # pi(t) = 1/(s·sqrt(2 pi)) · 1/(t(1−t)) · exp(−(logit(t) − m)² / 2s²)
        exponent = -((torch.logit(t) - self.mean) ** 2) / (2.0 * self.std**2)
        return torch.exp(exponent) / (self.std * math.sqrt(2.0 * math.pi) * t * (1.0 - t))
