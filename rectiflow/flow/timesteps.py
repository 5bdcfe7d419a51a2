"""Where on the path training looks: distributions of t over (0, 1).

A sampler maps uniform numbers through its quantile function, so that a caller with named,
counter-based uniforms gets the same t at any batch size. Notation: `docs/notation.md`.
Source: arXiv 2403.03206, section 3.1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow.path import format_parameter

_NUM_BISECTIONS = 60


class TimestepSampler(ABC):
    """A density on (0, 1) with a quantile function."""

    @abstractmethod
    def __str__(self) -> str:
        """The sampler's name in the paper, as `parse_formulation` reads it."""

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
class Uniform(TimestepSampler):
    """Every t as often as any other; where t is a quantile (`EDMPath`), a log-normal sigma."""

    def __str__(self) -> str:
        return "uniform"

    def from_uniform(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return u

    def density(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimestepSampler):
    """t = sigmoid(mean + std·n), n ~ N(0, 1); vanishes at both ends (equation 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ConfigError(f"lognorm mean={self.mean} must be a finite number")
        if not (math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"lognorm std={self.std} must be positive")

    def __str__(self) -> str:
        return "lognorm({},{})".format(*map(format_parameter, (self.mean, self.std)))

    def from_uniform(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # n = Phi^-1(u); in float64 because float32 quantiles lose the tails.
        n = torch.special.ndtri(u.double())
        return _rounded_inside(torch.sigmoid(self.mean + self.std * n), u.dtype)

    def density(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # pi(t) = 1/(s·sqrt(2 pi)) · 1/(t(1−t)) · exp(−(logit(t) − m)² / 2s²)
        exponent = -((torch.logit(t) - self.mean) ** 2) / (2.0 * self.std**2)
        return torch.exp(exponent) / (self.std * math.sqrt(2.0 * math.pi) * t * (1.0 - t))


@dataclass(frozen=True, kw_only=True)
class Mode(TimestepSampler):
    """More weight to the middle (scale > 0) or the ends (scale < 0), none to zero (equation 20).

    t = 1 − u' − scale·(cos²(πu'/2) − 1 + u') with u' = 1 − u, which makes it increasing in u.
    """

    #: Beyond these t is no longer a monotone function of u.
    SCALE_RANGE: ClassVar[tuple[float, float]] = (-1.0, 2.0 / (math.pi - 2.0))

    scale: float

    def __post_init__(self) -> None:
        low, high = self.SCALE_RANGE
        if not low <= self.scale <= high:
            raise ConfigError(
                f"mode scale={self.scale} is out of range; give a number from {low:g} to "
                f"2/(π − 2) = {high:.4f}"
            )

    def __str__(self) -> str:
        return f"mode({format_parameter(self.scale)})"

    def from_uniform(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return _rounded_inside(self._quantile(u.double()), u.dtype)

    def density(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # The quantile function has no inverse in closed form.
        wanted = t.double()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_NUM_BISECTIONS):
            middle = 0.5 * (low + high)
            is_low = self._quantile(middle) < wanted
            low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
        u = 0.5 * (low + high)
        # dt/du = 1 + scale·(1 − π/2·sin(πu)); sin(π(1 − u)) = sin(πu)
        slope = 1.0 + self.scale * (1.0 - 0.5 * math.pi * torch.sin(math.pi * u))
        return (1.0 / slope).to(t.dtype)

    def _quantile(self, u: Tensor) -> Tensor:
        # cos²(π(1 − u)/2) = sin²(πu/2)
        return u - self.scale * (torch.sin(0.5 * math.pi * u).square() - u)


@dataclass(frozen=True, kw_only=True)
class CosMap(TimestepSampler):
    """t = 1 − 1/(tan(πu/2) + 1): the cosine path's log-SNR for rectified flow (equation 21)."""

    def __str__(self) -> str:
        return "cosmap"

    def from_uniform(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # tan/(tan + 1) = sin/(sin + cos), finite everywhere
        angle = 0.5 * math.pi * u.double()
        sine, cosine = torch.sin(angle), torch.cos(angle)
        return _rounded_inside(sine / (sine + cosine), u.dtype)

    def density(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # pi(t) = 2/(pi − 2·pi·t + 2·pi·t²)
        return 2.0 / (math.pi * (1.0 - 2.0 * t + 2.0 * t * t))


def _rounded_inside(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Times in another dtype, where one near an end of (0, 1) would round to that end."""
    limits = torch.finfo(dtype)
    # Half of eps below 1 is the next number; what is not a normal one some devices take for 0.
    return t.to(dtype).clamp(min=limits.tiny, max=1.0 - limits.eps / 2)
