"""How noise becomes data and what a network is asked to predict on the way.

Four values make a formulation: a probability path, a prediction, a timestep sampler, a weighting.
No networks and no files here. Letters and signs: `docs/notation.md`.
Source: arXiv 2403.03206, sections 2 and 3.
"""

from rectiflow.flow.formulation import Formulation, rectified_flow
from rectiflow.flow.loss import FlowLoss, flow_matching_loss, noisy_latents
from rectiflow.flow.path import Coefficients, ProbabilityPath, RectifiedFlowPath
from rectiflow.flow.prediction import Prediction, VelocityPrediction
from rectiflow.flow.timesteps import LogitNormal, TimestepSampler
from rectiflow.flow.weighting import UnitWeighting, Weighting

__all__ = [
    "Coefficients",
    "FlowLoss",
    "Formulation",
    "LogitNormal",
    "Prediction",
    "ProbabilityPath",
    "RectifiedFlowPath",
    "TimestepSampler",
    "UnitWeighting",
    "VelocityPrediction",
    "Weighting",
    "flow_matching_loss",
    "noisy_latents",
    "rectified_flow",
]
