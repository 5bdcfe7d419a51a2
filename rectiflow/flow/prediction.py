"""What the network's output means: a linear functional of the pair (x0, eps).

output = c_x0·x0 + c_eps·eps. Together with z_t = alpha·x0 + sigma·eps that is a 2×2 system, and
every conversion between x0, eps, velocity and outputs is its solution; no formula stands twice.
Notation: `docs/notation.md`. Source: arXiv 2403.03206, section 2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow.path import Coefficients, format_parameter


def per_sample(values: Float[Tensor, " b"], like: Float[Tensor, "b ..."]) -> Tensor:
    """Shape [b] → [b 1 … 1], so that one value per sample broadcasts over `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


class Prediction(ABC):
    """A linear functional (c_x0, c_eps) that may depend on the path's coefficients."""

    @abstractmethod
    def __str__(self) -> str:
        """The prediction's name, as `parse_formulation` reads it."""

    @abstractmethod
    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(c_x0, c_eps), each [b]."""

    def network_input(
        self, z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        """What the network sees of z_t: by default z_t."""
        return z_t

    def determinant(self, at: Coefficients) -> Float[Tensor, " b"]:
        """alpha·c_eps − sigma·c_x0: the output's error for an error of alpha in eps at fixed z_t.

        Zero exactly where the output repeats z_t and conversions are singular: eps-prediction
        where alpha = 0, x0-prediction where sigma = 0.
        """
        c_x0, c_eps = self.functional(at)
        return at.alpha * c_eps - at.sigma * c_x0

    def target(
        self, x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        """What the network should put out."""
        c_x0, c_eps = self.functional(at)
        return per_sample(c_x0, x0) * x0 + per_sample(c_eps, eps) * eps

    def to_x0_and_eps(
        self, output: Float[Tensor, "b ..."], z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
        """Solve the 2×2 system for (x0, eps); inf or nan exactly where it is singular."""
        c_x0, c_eps = (per_sample(c, output) for c in self.functional(at))
        alpha, sigma = per_sample(at.alpha, z_t), per_sample(at.sigma, z_t)
        determinant = alpha * c_eps - sigma * c_x0
        x0 = (c_eps * z_t - sigma * output) / determinant
        eps = (alpha * output - c_x0 * z_t) / determinant
        return x0, eps

    def to_velocity(
        self, output: Float[Tensor, "b ..."], z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        """dz/dt = d_alpha·x0 + d_sigma·eps."""
        x0, eps = self.to_x0_and_eps(output, z_t, at)
        return per_sample(at.d_alpha, x0) * x0 + per_sample(at.d_sigma, eps) * eps


@dataclass(frozen=True, kw_only=True)
class VelocityPrediction(Prediction):
    """The output is dz/dt itself; for rectified flow eps − x0 (arXiv 2403.03206, section 2)."""

    def __str__(self) -> str:
        return "velocity"

    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return at.d_alpha, at.d_sigma

    def to_velocity(
        self, output: Float[Tensor, "b ..."], z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        # The identity, also where the 2×2 system is singular.
        return output


@dataclass(frozen=True, kw_only=True)
class X0Prediction(Prediction):
    """The output is the data."""

    def __str__(self) -> str:
        return "x0"

    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return torch.ones_like(at.alpha), torch.zeros_like(at.sigma)


@dataclass(frozen=True, kw_only=True)
class EpsPrediction(Prediction):
    """The output is the noise (arXiv 2006.11239)."""

    def __str__(self) -> str:
        return "eps"

    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return torch.zeros_like(at.alpha), torch.ones_like(at.sigma)


@dataclass(frozen=True, kw_only=True)
class VPrediction(Prediction):
    """The output is alpha·eps − sigma·x0 (arXiv 2202.00512, section 4)."""

    def __str__(self) -> str:
        return "v"

    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return -at.sigma, at.alpha


@dataclass(frozen=True, kw_only=True)
class FPrediction(Prediction):
    """EDM's preconditioned network: input and output have unit variance at every noise level.

    For data of std `data_std` and R² = sigma² + data_std²·alpha²: the network sees z_t/R, and its
    output is (sigma·x0/data_std − data_std·alpha·eps)/R. Source: arXiv 2206.00364, table 1, whose
    c_in, c_skip and c_out these are for alpha = 1.
    """

    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.data_std) and self.data_std > 0):
            raise ConfigError(f"data_std={self.data_std} must be positive")

    def __str__(self) -> str:
        return "F" if self == FPrediction() else f"F({format_parameter(self.data_std)})"

    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        radius = self._radius(at)
        return at.sigma / (self.data_std * radius), -self.data_std * at.alpha / radius

    def network_input(
        self, z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        return z_t / per_sample(self._radius(at), z_t)

    def _radius(self, at: Coefficients) -> Float[Tensor, " b"]:
        return torch.hypot(at.sigma, self.data_std * at.alpha)
