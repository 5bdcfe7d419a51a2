"""From noise to latents: field, guidance, time grids, solvers and the one integration loop.

No text and no pixels here. Source: arXiv 2403.03206, sections 2 and 5.3.2.
"""

from rectiflow.sampling.field import Backbone, Field
from rectiflow.sampling.guidance import ClassifierFreeGuidance, Guidance, NoGuidance
from rectiflow.sampling.integrate import OnStep, integrate
from rectiflow.sampling.schedule import linear_times, times_for
from rectiflow.sampling.solvers import Euler, Solver

__all__ = [
    "Backbone",
    "ClassifierFreeGuidance",
    "Euler",
    "Field",
    "Guidance",
    "NoGuidance",
    "OnStep",
    "Solver",
    "integrate",
    "linear_times",
    "times_for",
]
