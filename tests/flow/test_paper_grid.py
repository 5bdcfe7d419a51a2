"""Each of the paper's 61 formulations samples the data it is exact for, and is trained towards it.

The data are a mixture of two Gaussians, for which every conditional expectation is known.
"""

import pytest
import torch
from scipy.stats import ks_2samp

from rectiflow.flow import Formulation, flow_matching_loss, paper_grid
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling import Euler, Field, NoGuidance, integrate, times_for

MEANS, STDS, SHARES = (-1.0, 0.8), (0.25, 0.5), (0.4, 0.6)
each_formulation = pytest.mark.parametrize("formulation", paper_grid(), ids=str)


def draw_data(num: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = (torch.rand(num, generator=generator) >= SHARES[0]).long()
    noise = torch.randn(num, generator=generator, dtype=torch.float64)
    means, stds = (torch.tensor(values, dtype=torch.float64) for values in (MEANS, STDS))
    return (means[which] + stds[which] * noise)[:, None]


class Expectation:
    """The network that puts out E[output | z_t], from what it sees of z_t; `offset` spoils it."""

    def __init__(self, formulation: Formulation, offset: float = 0.0) -> None:
        self.formulation, self.offset = formulation, offset

    def __call__(self, seen: torch.Tensor, t: torch.Tensor, conditioning: object) -> torch.Tensor:
        prediction = self.formulation.prediction
        at = self.formulation.path.coefficients(t.double())
        one = prediction.network_input(torch.ones_like(seen, dtype=torch.float64), at)
        z_t = seen.double() / one
        alpha, sigma = at.alpha[:, None], at.sigma[:, None]
        # Given a component, (x0, z_t) are jointly normal.
        log_shares, x0_means = [], []
        for mean, std, share in zip(MEANS, STDS, SHARES, strict=True):
            variance = (alpha * std) ** 2 + sigma**2
            rest = z_t - alpha * mean
            log_shares.append(
                torch.log(torch.tensor(share).double())
                - 0.5 * (variance.log() + rest**2 / variance)
            )
            x0_means.append(mean + alpha * std**2 / variance * rest)
        posterior = torch.stack(log_shares).softmax(dim=0)
        x0 = (posterior * torch.stack(x0_means)).sum(0)
        eps = (z_t - alpha * x0) / sigma
        return (prediction.target(x0, eps, at) + self.offset).to(seen.dtype)


def draw_samples(formulation: Formulation, *, num: int, num_steps: int) -> torch.Tensor:
    nothing = Conditioning(context=torch.zeros(num, 1, 1), pooled=torch.zeros(num, 1))
    field = Field(
        backbone=Expectation(formulation),
        formulation=formulation,
        guidance=NoGuidance(),
        conditioning=nothing,
        null=nothing,
    )
    noise = torch.randn(num, 1, generator=torch.Generator().manual_seed(5))
    times = times_for(formulation, num_steps)
    return integrate(field, Euler(), formulation.start(noise), times)


def test_there_are_61_different_ones():
    grid = paper_grid()
    assert len(grid) == 61
    assert len({str(formulation) for formulation in grid}) == 61
    assert len(set(grid)) == 61


@each_formulation
def test_the_exact_network_samples_the_data(formulation: Formulation):
    found = draw_samples(formulation, num=4000, num_steps=100)
    assert torch.isfinite(found).all()
    assert ks_2samp(found[:, 0].numpy(), draw_data(4000, 6)[:, 0].numpy()).pvalue > 1e-3


@each_formulation
@pytest.mark.parametrize("num_steps", [1, 5])
def test_a_few_steps_stay_finite(formulation: Formulation, num_steps: int):
    found = draw_samples(formulation, num=8, num_steps=num_steps)
    assert torch.isfinite(found).all()
    assert (found.abs() < 10).all()


@each_formulation
def test_the_loss_is_least_for_the_expectation(formulation: Formulation):
    num = 20_000
    generator = torch.Generator().manual_seed(2)
    x0 = draw_data(num, 3)
    eps = torch.randn(num, 1, generator=generator, dtype=torch.float64)
    u = torch.rand(num, generator=generator, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
    t = formulation.timesteps.from_uniform(u).clamp(1e-6, 1 - 1e-6)

    def loss_of(offset: float) -> float:
        network = Expectation(formulation, offset)
        return flow_matching_loss(network, formulation, x0, eps, t, None).loss.item()

    best = loss_of(0.0)
    assert best < loss_of(0.1)
    assert best < loss_of(-0.1)
