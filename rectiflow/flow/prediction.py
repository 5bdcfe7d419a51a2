"""What the network's output means: a linear functional of the pair (x0, eps).

output = c_x0·x0 + c_eps·eps. Together with z_t = alpha·x0 + sigma·eps that is a 2×2 system, and
every conversion between x0, eps, velocity and outputs is its solution; no formula stands twice.
Notation: `docs/notation.md`. Source: arXiv 2403.03206, section 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rectiflow.flow.path import Coefficients


def per_sample(values: Float[Tensor, " b"], like: Float[Tensor, "b ..."]) -> Tensor:
    """Shape [b] → [b 1 … 1], so that one value per sample broadcasts over `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


class Prediction(ABC):
    """A linear functional (c_x0, c_eps) that may depend on the path's coefficients."""

    name: str

    @abstractmethod
    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(c_x0, c_eps), each [b]."""

    def target(
        self, x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        """What the network should put out."""
        c_x0, c_eps = self.functional(at)
        return per_sample(c_x0, x0) * x0 + per_sample(c_eps, eps) * eps

    def to_x0_and_eps(
        self, output: Float[Tensor, "b ..."], z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
        """Solve the 2×2 system for (x0, eps).

        Singular (inf or nan) exactly where alpha·c_eps = sigma·c_x0: there the output repeats z_t.
        """
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

    name = "velocity"

    def functional(self, at: Coefficients) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return at.d_alpha, at.d_sigma

    def to_velocity(
        self, output: Float[Tensor, "b ..."], z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        # The identity, also where the 2×2 system is singular.
        return output
