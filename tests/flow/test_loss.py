"""Laws of the training objective."""

import pytest
import torch

from rectiflow.flow import flow_matching_loss, rectified_flow

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


def test_times_of_the_wrong_type_or_range_are_refused():
    x0, eps = random_pair()

    def loss_at(t: torch.Tensor) -> None:
        flow_matching_loss(lambda z, t, c: z, rectified_flow(), x0, eps, t, None)

    with pytest.raises(ValueError, match=r"t is torch.bfloat16; times are float32 or float64"):
        loss_at(TIMES.bfloat16())
    with pytest.raises(ValueError, match=r"t holds 1.0199.*; times lie in \[0, 1\]"):
        loss_at(TIMES + 1.0)
