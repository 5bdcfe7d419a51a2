"""From noise to latents: field, guidance, time grids, solvers and the one integration loop.

No text and no pixels here. Source: arXiv 2403.03206, sections 2 and 5.3.2.
"""

from rectiflow.sampling.adaptive import DormandPrince
from rectiflow.sampling.field import Backbone, Field
from rectiflow.sampling.guidance import ClassifierFreeGuidance, Guidance, NoGuidance
from rectiflow.sampling.integrate import CountedField, OnStep, integrate
from rectiflow.sampling.multistep import DPMSolverPP2M
from rectiflow.sampling.schedule import (
    DynamicShiftGrid,
    LinearGrid,
    ReleasedGrid,
    TimeGrid,
    TrainingTimesGrid,
    linear_times,
    times_for,
)
from rectiflow.sampling.solvers import RK4, Euler, Heun, Midpoint, Solver

__all__ = [
    "RK4",
    "Backbone",
    "ClassifierFreeGuidance",
    "CountedField",
    "DPMSolverPP2M",
    "DormandPrince",
    "DynamicShiftGrid",
    "Euler",
    "Field",
    "Guidance",
    "Heun",
    "LinearGrid",
    "Midpoint",
    "NoGuidance",
    "OnStep",
    "ReleasedGrid",
    "Solver",
    "TimeGrid",
    "TrainingTimesGrid",
    "integrate",
    "linear_times",
    "times_for",
]
