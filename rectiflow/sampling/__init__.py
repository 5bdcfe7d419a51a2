"""From noise to latents: field, guidance, time grids, solvers and the one integration loop.

No text and no pixels here. Source: arXiv 2403.03206, sections 2 and 5.3.2.
"""

from rectiflow.sampling.adaptive import DormandPrince
from rectiflow.sampling.ancestral import Ancestral
from rectiflow.sampling.defaults import SamplingDefaults
from rectiflow.sampling.field import Backbone, Field, time_and_coefficients
from rectiflow.sampling.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    IntervalGuidance,
    NoGuidance,
    RescaledGuidance,
)
from rectiflow.sampling.inpainting import InpaintingSolver, noisy_on_line
from rectiflow.sampling.integrate import CountedField, OnStep, evaluation_times, integrate
from rectiflow.sampling.multistep import DPMSolverPP2M
from rectiflow.sampling.names import parse_grid, parse_guidance, parse_solver, spell
from rectiflow.sampling.projected_guidance import AdaptiveProjectedGuidance, CFGZeroStar
from rectiflow.sampling.schedule import (
    DynamicShiftGrid,
    LinearGrid,
    ReleasedGrid,
    TimeGrid,
    TrainingTimesGrid,
    linear_times,
    times_for,
)
from rectiflow.sampling.solvers import RK4, Euler, FreshNoise, Heun, Midpoint, Solver
from rectiflow.sampling.weak_guidance import (
    AutoGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)

__all__ = [
    "RK4",
    "AdaptiveProjectedGuidance",
    "Ancestral",
    "AutoGuidance",
    "Backbone",
    "CFGZeroStar",
    "ClassifierFreeGuidance",
    "CountedField",
    "DPMSolverPP2M",
    "DormandPrince",
    "DynamicShiftGrid",
    "Euler",
    "Field",
    "FreshNoise",
    "Guidance",
    "Heun",
    "InpaintingSolver",
    "IntervalGuidance",
    "LinearGrid",
    "Midpoint",
    "NoGuidance",
    "OnStep",
    "PerturbedAttentionGuidance",
    "ReleasedGrid",
    "RescaledGuidance",
    "SamplingDefaults",
    "SkipLayerGuidance",
    "Solver",
    "TimeGrid",
    "TrainingTimesGrid",
    "evaluation_times",
    "integrate",
    "linear_times",
    "noisy_on_line",
    "parse_grid",
    "parse_guidance",
    "parse_solver",
    "spell",
    "time_and_coefficients",
    "times_for",
]
