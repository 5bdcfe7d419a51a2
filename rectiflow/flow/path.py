"""Probability paths: z_t = alpha(t)·x0 + sigma(t)·eps from data (t near 0) to noise (t near 1).

Every path is the straight one in other clothes: z_t/(alpha + sigma) lies on the line from x0 to eps
at the place s = sigma/(alpha + sigma). Sampling runs in these straight coordinates, where the
velocity is eps − x0 whatever the path, so that solvers, time grids and guidance know nothing of it.
Notation: `docs/notation.md`; alpha and sigma are the paper's a_t and b_t.
Source: arXiv 2403.03206, equations 1–3 and section 3.
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


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """alpha, sigma and their derivatives by t, one value per sample."""

    alpha: Float[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    d_alpha: Float[Tensor, " b"]
    d_sigma: Float[Tensor, " b"]


class ProbabilityPath(ABC):
    """A differentiable pair (alpha, sigma) of t whose signal-to-noise ratio falls with t."""

    #: Whether straight coordinates are the path's own, so that nothing need be converted.
    is_straight: ClassVar[bool] = False

    @abstractmethod
    def __str__(self) -> str:
        """The path's name in the paper, as `parse_formulation` reads it."""

    @abstractmethod
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        """Coefficients at t in [0, 1], in the dtype of t."""

    @abstractmethod
    def time_at_log_snr(self, log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The inverse of `log_snr`; outside the path's range its nearest end."""

    @property
    def time_range(self) -> tuple[float, float]:
        """The least and greatest t that sampling visits."""
        return 0.0, 1.0

    def log_snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """lambda_t = log(alpha²/sigma²); +inf at t = 0 and −inf at t = 1 where a path is exact."""
        at = self.coefficients(t)
        return 2.0 * (torch.log(at.alpha) - torch.log(at.sigma))

    def place_on_line(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """t → s = sigma/(alpha + sigma), the time in straight coordinates."""
        at = self.coefficients(t)
        return at.sigma / (at.alpha + at.sigma)

    def time_at_place(self, s: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The inverse of `place_on_line`; outside the path's range its nearest end."""
        # alpha/sigma = (1 − s)/s
        t = self.time_at_log_snr(2.0 * (torch.log1p(-s) - torch.log(s)))
        return t.clamp(*self.time_range)


def check_times(t: Tensor) -> None:
    """Pass if t is float32 or float64 and within [0, 1].

    Raises:
        ValueError: it is not; bfloat16 and float16 are too coarse for a time, and a cast would
            hide that it has already lost its digits. Outside a CPU a time out of range is found
            without waiting for the device, as its assertion.
    """
    if t.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"t is {t.dtype}; times are float32 or float64 from the start")
    is_inside = ((t >= 0.0) & (t <= 1.0)).all()
    if t.device.type != "cpu":
        torch._assert_async(is_inside)  # pyright: ignore[reportPrivateUsage]
    elif not is_inside:
        worst = t[(t < 0.0) | (t > 1.0) | t.isnan()].reshape(-1)[0].item()
        raise ValueError(f"t holds {worst}; times lie in [0, 1] (0 is data, 1 is noise)")


@dataclass(frozen=True, kw_only=True)
class RectifiedFlowPath(ProbabilityPath):
    """Straight lines: z_t = (1 − t)·x0 + t·eps (arXiv 2403.03206, equation 13)."""

    is_straight: ClassVar[bool] = True

    def __str__(self) -> str:
        return "rf"

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        check_times(t)
        one = torch.ones_like(t)
        return Coefficients(alpha=1.0 - t, sigma=t, d_alpha=-one, d_sigma=one)

    def time_at_log_snr(self, log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.sigmoid(-0.5 * log_snr)

    # To the last bit, which the general formulas would round.
    def place_on_line(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return t

    def time_at_place(self, s: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return s


@dataclass(frozen=True, kw_only=True)
class CosinePath(ProbabilityPath):
    """A quarter circle: z_t = cos(πt/2)·x0 + sin(πt/2)·eps (section 3, cosine)."""

    def __str__(self) -> str:
        return "cos"

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        check_times(t)
        quarter = math.pi / 2
        # cos as a sine of the rest, so that alpha is 0 at t = 1 and not a rounding error.
        alpha, sigma = torch.sin(quarter * (1.0 - t)), torch.sin(quarter * t)
        return Coefficients(
            alpha=alpha, sigma=sigma, d_alpha=-quarter * sigma, d_sigma=quarter * alpha
        )

    def time_at_log_snr(self, log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # alpha/sigma = cot(πt/2)
        return torch.atan(torch.exp(-0.5 * log_snr)) * (2.0 / math.pi)


@dataclass(frozen=True, kw_only=True)
class EDMPath(ProbabilityPath):
    """z_t = x0 + sigma·eps, log sigma normal: sigma = exp(P_m + P_s·Φ⁻¹(t)), t uniform in (0, 1).

    The ends are infinite; sampling goes from `SIGMA_MAX` to `SIGMA_MIN` and then to the data. No t
    beyond 1 − 2^-24 or before 2^-24 is told from the ends in float32, so it goes from and to these
    where they come first: from less noise with a low P_m, to more with a high one.

    Raises:
        ConfigError: P_m not finite, P_s not positive, or hardly a t has a sigma of that range.

    Source: arXiv 2403.03206, section 3 (EDM); arXiv 2206.00364, table 1.
    """

    SIGMA_MIN: ClassVar[float] = 0.002
    SIGMA_MAX: ClassVar[float] = 80.0

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ConfigError(f"edm P_m={self.mean} must be a finite number")
        if not (math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"edm P_s={self.std} must be positive")
        low, high = self.time_range
        if not low < high:
            raise ConfigError(
                f"edm P_m={self.mean} and P_s={self.std} give next to no t a sigma from "
                f"{self.SIGMA_MIN} to {self.SIGMA_MAX}, where sampling goes; choose P_m from about "
                f"{math.log(self.SIGMA_MIN):.1f} to {math.log(self.SIGMA_MAX):.1f}, or a larger P_s"
            )

    def __str__(self) -> str:
        return "edm({},{})".format(*map(format_parameter, (self.mean, self.std)))

    @property
    def time_range(self) -> tuple[float, float]:
        ends = torch.tensor([self.SIGMA_MIN, self.SIGMA_MAX], dtype=torch.float64)
        low, high = torch.special.ndtr((ends.log() - self.mean) / self.std).tolist()
        # The greatest t may round to 1 in float32, where sigma would be infinite.
        return max(low, 2.0**-24), min(high, 1.0 - 2.0**-24)

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        check_times(t)
        n = torch.special.ndtri(t.double())
        sigma = torch.exp(self.mean + self.std * n)
        # dn/dt is one over the normal density at n
        d_sigma = sigma * self.std * math.sqrt(2.0 * math.pi) * torch.exp(0.5 * n * n)
        one = torch.ones_like(t)
        return Coefficients(
            alpha=one,
            sigma=sigma.to(t.dtype),
            d_alpha=torch.zeros_like(t),
            d_sigma=d_sigma.to(t.dtype),
        )

    def time_at_log_snr(self, log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        t = torch.special.ndtr((-0.5 * log_snr.double() - self.mean) / self.std)
        return t.to(log_snr.dtype)


def format_parameter(value: float) -> str:
    """Two decimals as the paper prints them, more only where they are needed to read it back."""
    text = f"{value:.2f}"
    return text if float(text) == value else repr(float(value))
