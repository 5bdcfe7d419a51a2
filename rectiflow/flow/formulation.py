"""A formulation: path, prediction, timestep sampler and weighting, one row of the paper's table.

Notation: `docs/notation.md`. Source: arXiv 2403.03206, section 3 and table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow.path import Coefficients, ProbabilityPath, RectifiedFlowPath
from rectiflow.flow.prediction import Prediction, VelocityPrediction
from rectiflow.flow.timesteps import LogitNormal, TimestepSampler, Uniform
from rectiflow.flow.weighting import UnitWeighting, Weighting

#: Where a prediction is singular at alpha = 0, sampling starts at this alpha/sigma instead; where
#: it is at sigma = 0, the network is last evaluated at this sigma/alpha.
LEAST_SIGNAL = 0.01
#: The paper's names for what prediction, path, sampler and weighting would spell out: whole names
#: and beginnings.
SHORT_NAMES = {"F/rf~velocity": "edm/rf", "F/cos~v": "edm/cos"}
SHORT_BEGINNINGS = {"velocity/rf": "rf", "F/edm(": "edm("}


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """All that training and sampling must agree on.

    `str()` is the paper's name for it, or one in the same grammar; `parse_formulation` reads it.
    """

    path: ProbabilityPath
    prediction: Prediction
    timesteps: TimestepSampler
    weighting: Weighting

    def __str__(self) -> str:
        name = f"{self.prediction}/{self.path}"
        if self.timesteps != Uniform():
            name += f"/{self.timesteps}"
        if self.weighting != UnitWeighting():
            name += f"~{self.weighting}"
        if name in SHORT_NAMES:
            return SHORT_NAMES[name]
        for long, short in SHORT_BEGINNINGS.items():
            if name.startswith(long):
                return short + name.removeprefix(long)
        return name

    @cached_property
    def sampling_range(self) -> tuple[float, float]:
        """The least and greatest t at which sampling evaluates the network."""
        log_snr = 2.0 * math.log(LEAST_SIGNAL)

        def regular(t: float, log_snr: float) -> float:
            at = self.path.coefficients(torch.tensor([t], dtype=torch.float64))
            if self.prediction.determinant(at).abs().item() >= LEAST_SIGNAL**2:
                return t
            return self.path.time_at_log_snr(torch.tensor([log_snr], dtype=torch.float64)).item()

        low, high = self.path.time_range
        return regular(low, -log_snr), regular(high, log_snr)

    def velocity_on_line(
        self, output: Float[Tensor, "b ..."], z_t: Float[Tensor, "b ..."], at: Coefficients
    ) -> Float[Tensor, "b ..."]:
        """eps − x0, the velocity in straight coordinates, of the network's output at z_t."""
        if self.path.is_straight:
            return self.prediction.to_velocity(output, z_t, at)
        x0, eps = self.prediction.to_x0_and_eps(output, z_t, at)
        return eps - x0

    def start(self, eps: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Noise → the place on the line where sampling starts.

        It has the variance of noisy data of unit variance there; for velocities of rectified
        flow, which start at pure noise, it is the noise itself.
        """
        t = torch.tensor([self.sampling_range[1]], dtype=torch.float64)
        at = self.path.coefficients(t)
        scale = torch.hypot(at.alpha, at.sigma) / (at.alpha + at.sigma)
        return scale.item() * eps

    def paper_weight(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """w_t of the loss −½·E[w_t·lambda'_t·|error of eps|²] over uniform t (equation 18).

        Everything that decides what training stresses, sampler and output included, in the one
        number that compares formulations.
        """
        at = self.path.coefficients(t)
        d_log_snr = 2.0 * (at.d_alpha / at.alpha - at.d_sigma / at.sigma)
        # error of the output = determinant/alpha · error of eps
        squared = (self.prediction.determinant(at) / at.alpha).square()
        density = self.timesteps.density(t)
        return -2.0 * density * self.weighting.weight(t, at, self.prediction) * squared / d_log_snr


def rectified_flow(*, mean: float = 0.0, std: float = 1.0) -> Formulation:
    """Straight path, velocity prediction, logit-normal t: the paper's winner by default."""
    return Formulation(
        path=RectifiedFlowPath(),
        prediction=VelocityPrediction(),
        timesteps=LogitNormal(mean=mean, std=std),
        weighting=UnitWeighting(),
    )
