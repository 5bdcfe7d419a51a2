"""A solver around any other: a white mask is that other, a black one the source, at every time."""

import pytest
import torch
from sampling.test_solvers import SOLVERS

from rectiflow.sampling import (
    CountedField,
    DormandPrince,
    InpaintingSolver,
    Solver,
    integrate,
    linear_times,
    noisy_on_line,
)

by_name = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
TIMES = linear_times(5)


def draw(seed: int, num: int) -> torch.Tensor:
    return torch.randn(num, 4, 6, 5, generator=torch.Generator().manual_seed(seed))


X0, EPS = draw(1, 1), draw(2, 3)


def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Bent, and each value's depends on its neighbours'."""
    return torch.tanh(z + 0.5 * z.roll(1, dims=-1)) * (1 + t)


def mask_of(value: float) -> torch.Tensor:
    return torch.full((1, 1, 6, 5), value)


def around(solver: Solver, mask: torch.Tensor) -> InpaintingSolver:
    return InpaintingSolver(solver, x0=X0, eps=EPS, mask=mask)


@by_name
def test_a_white_mask_leaves_the_solver_its_bits_and_evaluations(solver: Solver) -> None:
    plain, masked = CountedField(velocity), CountedField(velocity)
    expected = integrate(plain, solver, EPS, TIMES)
    found = integrate(masked, around(solver, mask_of(1.0)), EPS, TIMES)
    assert torch.equal(found, expected)
    assert masked.num_evaluations == plain.num_evaluations


@by_name
def test_outside_the_mask_is_the_source_at_every_time_and_itself_at_the_end(solver: Solver) -> None:
    mask = mask_of(0.0)
    mask[..., 2:] = 1.0

    def look(i: int, t: torch.Tensor, z: torch.Tensor) -> None:
        assert torch.equal(z[..., :2], (t * EPS + (1 - t) * X0)[..., :2])

    end = integrate(velocity, around(solver, mask), EPS, TIMES, look)
    assert torch.equal(end[..., :2], X0.expand(3, -1, -1, -1)[..., :2])
    free = integrate(velocity, solver, EPS, TIMES)
    # What is painted sees what is kept.
    assert not torch.allclose(end[..., 2:], free[..., 2:], atol=1e-3)


@by_name
def test_grey_mixes(solver: Solver) -> None:
    times = TIMES[-2:]
    start = noisy_on_line(X0, EPS, times[0])
    free = integrate(velocity, solver, start, times)
    mixed = integrate(velocity, around(solver, mask_of(0.25)), start, times)
    torch.testing.assert_close(mixed, 0.25 * free + 0.75 * X0)


def test_it_has_the_order_and_the_coupling_of_what_is_inside() -> None:
    solver = around(DormandPrince(), mask_of(1.0))
    assert (solver.order, solver.couples_samples) == (5, True)
