"""The variance-preserving paths of DDPM and LDM, defined by T discrete noise rates beta_s.

alpha² at t = s/(T − 1) is the product of 1 − beta_r over r ≤ s, exactly as in the table that those
models use, and a smooth function in between: the sum of logarithms is continued by the
Euler–Maclaurin formula, whose integral has a closed form here.
Source: arXiv 2403.03206, section 3 (LDM-linear); arXiv 2006.11239, section 4; arXiv 2112.10752.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow.path import Coefficients, ProbabilityPath, check_times

_NUM_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class BetaPath(ProbabilityPath):
    """T rates from `beta_start` to `beta_end`; a subclass says what runs evenly between them."""

    beta_start: float
    beta_end: float
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_start < self.beta_end < 1.0:
            raise ConfigError(
                f"betas run from {self.beta_start} to {self.beta_end}; give 0 < start < end < 1"
            )
        if self.num_steps < 2:
            raise ConfigError(f"num_steps={self.num_steps} must be at least 2")

    def _described(self, name: str) -> str:
        """The name alone for the usual rates, with the rates for others."""
        if self == type(self)():  # pyright: ignore[reportCallIssue]
            return name
        return f"{name}({self.beta_start!r},{self.beta_end!r},{self.num_steps})"

    @abstractmethod
    def _log_keep(self, s: Float64[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f(s) = log(1 − beta_s) as (∫f ds, f, f', f''), each up to the same constant in s."""

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        check_times(t)
        last = float(self.num_steps - 1)
        s = t.double() * last
        integral, f, df, ddf = self._log_keep(s)
        integral0, f0, df0, _ = self._log_keep(torch.zeros_like(s))
        # sum of f over 0 … s = ∫ + (f(0) + f(s))/2 + (f'(s) − f'(0))/12 − …
        log_alpha = 0.5 * (integral - integral0 + 0.5 * (f0 + f) + (df - df0) / 12.0)
        d_log_alpha = 0.5 * last * (f + 0.5 * df + ddf / 12.0)
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2.0 * log_alpha)).sqrt()
        d_alpha = alpha * d_log_alpha
        # alpha² + sigma² = 1
        d_sigma = -alpha * d_alpha / sigma
        alpha, sigma, d_alpha, d_sigma = (
            part.to(t.dtype) for part in (alpha, sigma, d_alpha, d_sigma)
        )
        return Coefficients(alpha=alpha, sigma=sigma, d_alpha=d_alpha, d_sigma=d_sigma)

    def time_at_log_snr(self, log_snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        wanted = log_snr.double()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_NUM_BISECTIONS):  # the log-SNR falls with t
            middle = 0.5 * (low + high)
            is_early = self.log_snr(middle) > wanted
            low, high = torch.where(is_early, middle, low), torch.where(is_early, high, middle)
        return (0.5 * (low + high)).to(log_snr.dtype)


@dataclass(frozen=True, kw_only=True)
class LDMLinearPath(BetaPath):
    """sqrt(beta) runs evenly: the paper's "linear", with LDM's usual ends."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __str__(self) -> str:
        return self._described("linear")

    def _log_keep(self, s: Float64[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # r = sqrt(beta): log(1 − r²) = log(1 − r) + log(1 + r)
        start = self.beta_start**0.5
        q = (self.beta_end**0.5 - start) / (self.num_steps - 1)
        r = start + q * s
        keep = 1.0 - r * r
        f = torch.log1p(-r * r)
        integral = (r * f - 2.0 * r + 2.0 * torch.atanh(r)) / q
        return integral, f, -2.0 * r * q / keep, -2.0 * q * q * (1.0 + r * r) / keep**2


@dataclass(frozen=True, kw_only=True)
class DDPMLinearPath(BetaPath):
    """beta itself runs evenly, as in DDPM."""

    beta_start: float = 0.0001
    beta_end: float = 0.02

    def __str__(self) -> str:
        return self._described("ddpm-linear")

    def _log_keep(self, s: Float64[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = (self.beta_end - self.beta_start) / (self.num_steps - 1)
        beta = self.beta_start + q * s
        keep = 1.0 - beta
        f = torch.log1p(-beta)
        integral = (-beta - keep * f) / q
        return integral, f, -q / keep, -((q / keep) ** 2)
