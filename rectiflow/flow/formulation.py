"""A formulation: path, prediction, timestep sampler and weighting, one row of the paper's table.

Notation: `docs/notation.md`. Source: arXiv 2403.03206, section 3 and table 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from rectiflow.flow.path import ProbabilityPath, RectifiedFlowPath
from rectiflow.flow.prediction import Prediction, VelocityPrediction
from rectiflow.flow.timesteps import LogitNormal, TimestepSampler
from rectiflow.flow.weighting import UnitWeighting, Weighting


@dataclass(frozen=True, kw_only=True)
class Formulation:
    """All that training and sampling must agree on; `str()` is the paper's name for it."""

    path: ProbabilityPath
    prediction: Prediction
    timesteps: TimestepSampler
    weighting: Weighting

    def __str__(self) -> str:
        return f"{self.path.name}/{self.timesteps}"


def rectified_flow(*, mean: float = 0.0, std: float = 1.0) -> Formulation:
    """Straight path, velocity prediction, logit-normal t: the paper's winner by default."""
    return Formulation(
        path=RectifiedFlowPath(),
        prediction=VelocityPrediction(),
        timesteps=LogitNormal(mean=mean, std=std),
        weighting=UnitWeighting(),
    )
