"""Every solver converges with its order on a flow with a closed form."""

import itertools
import math

import pytest
import torch
from sampling.gaussian_flow import (
    DATA_STD,
    bent_exact,
    bent_velocity,
    exact,
    gaussian_velocity,
    noise,
)

from rectiflow.sampling import (
    RK4,
    Ancestral,
    CountedField,
    DormandPrince,
    DPMSolverPP2M,
    Euler,
    Heun,
    Midpoint,
    Solver,
    integrate,
)
from rectiflow.sampling.solvers import RungeKutta

#: Tolerant of anything, so that it steps from time to time as the others do.
FREE = DormandPrince(tolerance=1e9)
#: Without noise, which no flow has.
QUIET = Ancestral(eta=0.0)
ONE_STEP = (Euler(), Heun(), Midpoint(), RK4(), FREE, QUIET)
SOLVERS = (*ONE_STEP, DPMSolverPP2M())
by_name = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
TABLES = (Heun, Midpoint, RK4, DormandPrince)
EVALUATIONS = {
    Euler: 1,
    Ancestral: 1,
    DPMSolverPP2M: 1,
    Heun: 2,
    Midpoint: 2,
    RK4: 4,
    DormandPrince: 7,
}


def orders(solver: Solver, field, exact, z: torch.Tensor, *, end: float) -> list[float]:
    """The order of convergence between numbers of steps from t = 1 that double, three times."""
    errors = []
    # Few for a high order, whose error would reach the last digits of float64.
    fewest = 20 if solver.order < 5 else 5
    for num_steps in (fewest, 2 * fewest, 4 * fewest, 8 * fewest):
        times = torch.linspace(1, end, num_steps + 1, dtype=torch.float64)
        found = integrate(field, solver, z, times)
        errors.append((found - exact(z, times[-1])).abs().max().item())
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@by_name
def test_order_of_convergence_on_the_gaussian_flow(solver: Solver) -> None:
    if solver == FREE:
        pytest.skip("its error reaches the last digits of float64 before it is asymptotic")
    found = orders(solver, gaussian_velocity, exact, noise(), end=0.2)
    # The midpoint gains an order on fields that are linear in z.
    nominal = 3 if isinstance(solver, Midpoint) else solver.order
    assert found[-1] == pytest.approx(nominal, abs=0.2), found


@by_name
def test_order_of_convergence_on_a_bent_flow(solver: Solver) -> None:
    z = torch.linspace(0.5, 0.9, 5, dtype=torch.float64)[:, None]
    found = orders(solver, bent_velocity, bent_exact, z, end=0.2)
    assert found[-1] == pytest.approx(solver.order, abs=0.2), found


@by_name
def test_order_of_convergence_down_to_the_data(solver: Solver) -> None:
    # Steps of −ln t grow without bound towards 0, which costs DPM-Solver++ a logarithm.
    found = orders(solver, gaussian_velocity, exact, noise(), end=0.0)
    assert found[-1] > solver.order - 0.25, found


@pytest.mark.parametrize("table", TABLES)
def test_tableaus_are_consistent(table: type[RungeKutta]) -> None:
    assert sum(table.weights) == pytest.approx(1.0, abs=1e-15)
    for i, (node, row) in enumerate(zip(table.nodes, table.rows, strict=True)):
        assert len(row) == i
        assert sum(row) == pytest.approx(node, abs=1e-14)


@by_name
def test_a_step_costs_what_it_should_and_one_without_length_changes_nothing(solver: Solver) -> None:
    field, z = CountedField(gaussian_velocity), noise()
    integrate(field, solver, z, torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))
    assert field.num_evaluations == 2 * EVALUATIONS[type(solver)]
    times = torch.tensor([0.9, 0.9, 0.8, 0.8, 0.7], dtype=torch.float64)
    with_rests = integrate(gaussian_velocity, solver, z, times)
    torch.testing.assert_close(
        with_rests, integrate(gaussian_velocity, solver, z, times[[0, 2, 4]]), atol=1e-12, rtol=0
    )


@by_name
def test_a_constant_velocity_is_solved_exactly(solver: Solver) -> None:
    start, velocity = noise(), torch.full((9, 1), 0.7, dtype=torch.float64)
    end = integrate(lambda z, t: velocity, solver, start, torch.linspace(1, 0, 4).double())
    torch.testing.assert_close(end, start - velocity, atol=1e-12, rtol=0)


def test_dpm_solver_is_exact_where_the_estimated_data_are_constant() -> None:
    # One point of data: x0 is known from the first step on, whatever the noise.
    end = integrate(lambda z, t: (z - 3.0) / t, DPMSolverPP2M(), noise(), torch.linspace(1, 0, 3))
    torch.testing.assert_close(end, torch.full_like(end, 3.0))


def test_dpm_solver_begins_with_an_euler_step() -> None:
    times = torch.tensor([1.0, 0.6], dtype=torch.float64)
    ours, euler = (
        integrate(gaussian_velocity, solver, noise(), times)
        for solver in (DPMSolverPP2M(), Euler())
    )
    torch.testing.assert_close(ours, euler, atol=1e-14, rtol=0)


@pytest.mark.parity
def test_dpm_solver_is_that_of_diffusers() -> None:
    from diffusers import EDMDPMSolverMultistepScheduler

    # The line's equation is that of a variance-exploding path, whose solver theirs is.
    times = torch.tensor([1.0, 0.83, 0.6, 0.37, 0.1, 0.0], dtype=torch.float64)
    theirs = EDMDPMSolverMultistepScheduler(solver_order=2, solver_type="midpoint")
    theirs.sigmas = times
    z = expected = noise()
    outputs: list[torch.Tensor] = []
    memory = None
    for i in range(5):
        theirs._step_index = i
        x0 = expected - times[i] * gaussian_velocity(expected, times[i])
        outputs.append(x0)
        if i in (0, 4):
            expected = theirs.dpm_solver_first_order_update(x0, sample=expected)
        else:
            expected = theirs.multistep_dpm_solver_second_order_update(outputs, sample=expected)
        z, memory = DPMSolverPP2M().step(gaussian_velocity, z, times[i], times[i + 1], memory)
        torch.testing.assert_close(z, expected, atol=1e-12, rtol=0)


def test_the_error_follows_the_tolerance_and_evaluations_grow_slowly() -> None:
    counts = []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        field, z = CountedField(gaussian_velocity), noise()
        end = integrate(
            field, DormandPrince(tolerance=tolerance), z, torch.tensor([1.0, 0.0]).double()
        )
        assert (end - DATA_STD * z).abs().max() < 20 * tolerance
        counts.append(field.num_evaluations)
    assert counts == sorted(counts)
    # Order 5: a hundredth of the error for 2.5 times the work.
    assert counts[-1] / counts[-2] < 3.0


def test_it_stops_at_every_time_of_the_grid_and_never_leaves_the_interval() -> None:
    seen: list[float] = []

    def field(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.item())
        return gaussian_velocity(z, t)

    stops: list[float] = []
    times = torch.linspace(1, 0, 8)
    solver = DormandPrince(tolerance=1e-4)
    integrate(field, solver, noise().float(), times, lambda i, t, z: stops.append(t.item()))
    assert stops == times[1:].tolist()
    assert set(times.tolist()) <= set(seen)
    assert all(0.0 <= t <= 1.0 for t in seen)


@pytest.mark.parity
def test_dormand_prince_is_that_of_scipy() -> None:
    from scipy.integrate import RK45

    for name, theirs in (("rows", RK45.A), ("nodes", RK45.C), ("weights", RK45.B)):
        ours = getattr(DormandPrince, name)
        for row, expected in zip(ours, theirs, strict=False):
            assert torch.tensor(row).tolist() == pytest.approx(
                torch.tensor(expected[: len(row)] if name == "rows" else expected).tolist()
            )
    # Theirs is the other difference.
    assert [-e for e in DormandPrince.error_weights] == pytest.approx(RK45.E.tolist())
