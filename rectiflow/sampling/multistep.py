"""Solvers that remember: second order at one evaluation a step.

Source: arXiv 2211.01095 (DPM-Solver++), algorithm 2, in the form that the released SD3.5 code
samples with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.sampling.solvers import Memory, Solver, VelocityField


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M): solves the linear part exactly and extrapolates the estimated data.

    On the line dz/dt = (z − x0)/t, where x0 = z − t·field(z, t). In λ = −ln t, with h = λ' − λ and
    r = (the last step's h)/h, the straight line through this and the last estimate gives
      z' = (t'/t)·z + (1 − t'/t)·D,  D = x0 + (x0 − x0_last)/(2r).
    The first step and the one to t' = 0, where h is infinite, have D = x0: Euler's step. Down to
    t = 0 the error falls as 1/n² but for a logarithm, because h does not shrink there.
    """

    order: ClassVar[int] = 2

    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        if t_next == t:
            return z, memory
        x0 = z - t * field(z, t)
        data = x0
        if memory is not None and t_next > 0:
            x0_last, t_last = memory
            r = torch.log(t_last / t) / torch.log(t / t_next)
            data = x0 + (x0 - x0_last) / (2 * r)
        ratio = t_next / t
        return ratio * z + (1 - ratio) * data, (x0, t)
