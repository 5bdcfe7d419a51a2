"""How noise becomes data and what a network is asked to predict on the way.

Four values make a formulation: a probability path, a prediction, a timestep sampler, a weighting.
No networks and no files here. Letters and signs: `docs/notation.md`.
Source: arXiv 2403.03206, sections 2 and 3.
"""

from rectiflow.flow.beta_paths import DDPMLinearPath, LDMLinearPath
from rectiflow.flow.formulation import Formulation, rectified_flow
from rectiflow.flow.loss import FlowLoss, flow_matching_loss, noisy_latents
from rectiflow.flow.naming import parse_formulation
from rectiflow.flow.paper_grid import paper_grid
from rectiflow.flow.path import (
    Coefficients,
    CosinePath,
    EDMPath,
    ProbabilityPath,
    RectifiedFlowPath,
)
from rectiflow.flow.prediction import (
    EpsPrediction,
    FPrediction,
    Prediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from rectiflow.flow.shift import ResolutionShift
from rectiflow.flow.timesteps import CosMap, LogitNormal, Mode, TimestepSampler, Uniform
from rectiflow.flow.weighting import DensityWeighting, ErrorOf, UnitWeighting, Weighting

__all__ = [
    "Coefficients",
    "CosMap",
    "CosinePath",
    "DDPMLinearPath",
    "DensityWeighting",
    "EDMPath",
    "EpsPrediction",
    "ErrorOf",
    "FPrediction",
    "FlowLoss",
    "Formulation",
    "LDMLinearPath",
    "LogitNormal",
    "Mode",
    "Prediction",
    "ProbabilityPath",
    "RectifiedFlowPath",
    "ResolutionShift",
    "TimestepSampler",
    "Uniform",
    "UnitWeighting",
    "VPrediction",
    "VelocityPrediction",
    "Weighting",
    "X0Prediction",
    "flow_matching_loss",
    "noisy_latents",
    "paper_grid",
    "parse_formulation",
    "rectified_flow",
]
