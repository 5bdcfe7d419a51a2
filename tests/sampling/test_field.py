"""Every solver samples every kind of formulation, also those that are singular at an end."""

import pytest
import torch
from flow.test_paper_grid import Expectation
from sampling.test_solvers import SOLVERS

from rectiflow.flow import Formulation, parse_formulation
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling import RK4, Field, NoGuidance, Solver, integrate, times_for


def draw(formulation: Formulation, solver: Solver, num_steps: int) -> torch.Tensor:
    noise = torch.linspace(-2, 2, 41)[:, None]
    nothing = Conditioning(context=torch.zeros(41, 1, 1), pooled=torch.zeros(41, 1))
    network = Expectation(formulation)
    field = Field(
        # At t = 0 itself the expectation is 0/0; a network's output there is its limit.
        backbone=lambda z_t, t, conditioning: network(z_t, t.clamp(min=1e-4), conditioning),
        formulation=formulation,
        guidance=NoGuidance(),
        conditioning=nothing,
        null=nothing,
    )
    return integrate(field, solver, formulation.start(noise), times_for(formulation, num_steps))


@pytest.mark.parametrize("name", ["rf", "x0/rf", "eps/rf", "v/cos", "edm(-1.20,1.20)"])
def test_every_solver_samples_every_formulation(name: str) -> None:
    formulation = parse_formulation(name)
    best = draw(formulation, RK4(), 32)
    for solver in SOLVERS:
        near = 0.1 if solver.order == 1 else 0.03
        torch.testing.assert_close(draw(formulation, solver, 24), best, atol=near, rtol=0)
