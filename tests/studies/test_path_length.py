"""Laws of the length of a sample's way."""

import math

import pytest
import torch

from rectiflow.sampling import Euler, integrate, linear_times
from rectiflow.studies.path_length import PathLength, independent_length


class Field:
    """A velocity as a function of z and t, for `integrate`."""

    def __init__(self, velocity) -> None:
        self._velocity = velocity

    def __call__(self, z, t):
        return self._velocity(z, t)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_a_straight_way_is_as_long_as_its_ends_are_apart(num_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    eps, x0 = torch.randn(2, 5, 3, 4, 4, generator=generator)
    path = PathLength(eps)
    end = integrate(Field(lambda z, t: eps - x0), Euler(), eps, linear_times(num_steps), path)
    torch.testing.assert_close(end, x0, atol=1e-5, rtol=0)
    expected = (eps - x0).flatten(1).norm(dim=1).double()
    torch.testing.assert_close(path.lengths(), expected, atol=1e-5, rtol=0)


def test_a_quarter_of_a_circle_is_half_pi_long() -> None:
    start = torch.tensor([[1.0, 0.0]])
    path = PathLength(start)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) * math.pi / 2
    integrate(Field(lambda z, t: z @ turn), Euler(), start, linear_times(4000), path)
    assert path.lengths().item() == pytest.approx(math.pi / 2, rel=1e-3)


def test_lengths_do_not_depend_on_the_batches() -> None:
    starts = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    lengths = []
    for size in (5, 2, 1):
        path = PathLength(starts)
        for z in starts.split(size):
            integrate(Field(lambda z, t: z.sin() * t), Euler(), z, linear_times(6), path)
        lengths.append(path.lengths())
    for other in lengths[1:]:
        torch.testing.assert_close(other, lengths[0])


def test_more_samples_than_starts_are_refused() -> None:
    path = PathLength(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="2 samples came, but only 1 starts"):
        path(0, torch.tensor(0.5), torch.zeros(2, 4))


def test_unrelated_noise_and_data_lie_root_two_dim_apart() -> None:
    pairs = torch.randn(2, 2000, 1024, generator=torch.Generator().manual_seed(2))
    apart = (pairs[0] - pairs[1]).norm(dim=1).mean().item()
    assert apart == pytest.approx(independent_length(1024), rel=2e-3)
