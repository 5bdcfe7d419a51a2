"""Laws of the training objective."""

import pytest
import torch

from rectiflow.flow import (
    flow_matching_loss,
    noisy_latents,
    parse_formulation,
    rectified_flow,
)

TIMES = torch.linspace(0.02, 0.98, 8)


def random_pair() -> tuple[torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn((2, 8, 3, 4, 4), generator=torch.Generator().manual_seed(7))
    return x0, eps


def test_loss_is_zero_for_the_true_velocity_and_its_variance_for_zero():
    x0, eps = random_pair()

    def truth(z_t, t, conditioning):
        return eps - x0

    def nothing(z_t, t, conditioning):
        return torch.zeros_like(z_t)

    assert flow_matching_loss(truth, rectified_flow(), x0, eps, TIMES, None).loss.item() == 0.0
    loss = flow_matching_loss(nothing, rectified_flow(), x0, eps, TIMES, None)
    assert torch.allclose(loss.per_sample, (eps - x0).square().flatten(1).mean(1))
    assert loss.loss.item() == pytest.approx(loss.per_sample.mean().item())


def test_without_contrast_nothing_changes_and_with_it_neighbours_are_swapped():
    x0, eps = random_pair()

    def network(z_t, t, conditioning):
        return 0.3 * z_t

    for formulation in (rectified_flow(), parse_formulation("edm(-0.60,1.20)")):
        plain = flow_matching_loss(network, formulation, x0, eps, TIMES, None)
        zero = flow_matching_loss(network, formulation, x0, eps, TIMES, None, contrast=0.0)
        assert torch.equal(plain.per_sample, zero.per_sample)
        contrasted = flow_matching_loss(network, formulation, x0, eps, TIMES, None, contrast=0.25)
        # What an output fixed at sample i's costs against its neighbour's x0 and eps.
        at = formulation.path.coefficients(TIMES)
        z_t = formulation.prediction.network_input(noisy_latents(x0, eps, at), at)
        for i in range(len(x0)):
            j = i + 1 if i % 2 == 0 else i - 1
            other = flow_matching_loss(
                lambda *_, output=0.3 * z_t[i : i + 1]: output,
                formulation,
                x0[j : j + 1],
                eps[j : j + 1],
                TIMES[i : i + 1],
                None,
            )
            expected = plain.per_sample[i] - 0.25 * other.loss
            torch.testing.assert_close(contrasted.per_sample[i], expected)


def test_the_contrast_moves_the_minimiser_away_from_the_mean_target():
    """For x0 ~ N(m, s²) and the network a + b·z_t at one t; E[other target] is −m."""
    mean, std, t, contrast = 0.7, 0.5, 0.6, 0.2
    x0, eps = torch.randn(
        (2, 400_000, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    x0 = mean + std * x0
    times = torch.full((len(x0),), t, dtype=torch.float64)
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def network(z_t, t, conditioning):
        return line[0] + line[1] * z_t

    def gradient() -> torch.Tensor:
        loss = flow_matching_loss(
            network, rectified_flow(), x0, eps, times, None, contrast=contrast
        )
        return torch.autograd.grad(loss.loss, line)[0]

    # The objective is quadratic in the line: one Newton step from 0 is at its minimum.
    at_zero = gradient()
    columns: list[torch.Tensor] = []
    for direction in torch.eye(2, dtype=torch.float64):
        with torch.no_grad():
            line.copy_(direction)
        columns.append(gradient() - at_zero)
    found = torch.linalg.solve(torch.stack(columns, dim=1), -at_zero)
    # E[eps − x0 | z_t] = −m + slope·(z_t − (1 − t)·m), then (u − contrast·(−m))/(1 − contrast).
    slope = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
    u = torch.tensor([-mean - slope * (1 - t) * mean, slope])
    expected = (u - contrast * torch.tensor([-mean, 0.0])) / (1 - contrast)
    torch.testing.assert_close(found, expected.double(), rtol=0.0, atol=0.01)


def test_an_odd_number_makes_no_pairs():
    x0, eps = random_pair()
    with pytest.raises(ValueError, match="3 samples do not make pairs; give an even number"):
        flow_matching_loss(
            lambda z, t, c: z, rectified_flow(), x0[:3], eps[:3], TIMES[:3], None, contrast=0.1
        )


def test_times_of_the_wrong_type_or_range_are_refused():
    x0, eps = random_pair()

    def loss_at(t: torch.Tensor) -> None:
        flow_matching_loss(lambda z, t, c: z, rectified_flow(), x0, eps, t, None)

    with pytest.raises(ValueError, match=r"t is torch.bfloat16; times are float32 or float64"):
        loss_at(TIMES.bfloat16())
    with pytest.raises(ValueError, match=r"t holds 1.0199.*; times lie in \[0, 1\]"):
        loss_at(TIMES + 1.0)
