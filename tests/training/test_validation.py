"""Held-out losses say how well they are known."""

import math
from dataclasses import replace

import pytest
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.training.state import TrainState
from rectiflow.training.validation import LEVELS, summarize, validate


def test_errors_are_those_of_the_mean_over_samples() -> None:
    losses = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]], dtype=torch.float64)
    found = summarize(losses, (0.25, 0.75))
    assert found.per_level == pytest.approx((3.0, 20.0))
    assert found.loss == pytest.approx(11.5)
    assert found.per_level_error[0] == pytest.approx(math.sqrt(7.0 / 3.0))
    # Of the samples' means 5.5, 11 and 18: levels of one picture are no independent draws.
    assert found.error == pytest.approx(torch.tensor([5.5, 11.0, 18.0]).std().item() / 3**0.5)


def test_the_error_foretells_the_scatter_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [
        summarize(torch.rand(64, 3, generator=generator, dtype=torch.float64), (0.1, 0.5, 0.9))
        for _ in range(400)
    ]
    scatter = torch.tensor([draw.loss for draw in draws]).std().item()
    assert sum(draw.error for draw in draws) / len(draws) == pytest.approx(scatter, rel=0.15)


def test_one_sample_has_no_known_error() -> None:
    found = summarize(torch.ones(1, 2, dtype=torch.float64), (0.2, 0.8))
    assert found.loss == 1.0
    assert math.isnan(found.error)
    assert all(map(math.isnan, found.per_level_error))


def test_validation_has_an_error_for_each_level() -> None:
    recipe = tiny_recipe(precision="fp32")
    found = validate(TrainState.start(recipe).backbone, FakeFeed().validation, recipe)
    assert len(found.per_level_error) == len(LEVELS)
    assert 0 < found.error < found.loss


def test_no_more_rows_go_through_at_once_than_in_a_step_and_their_losses_are_the_same() -> None:
    recipe = tiny_recipe(precision="fp32", batch_size=8)
    backbone, batches = TrainState.start(recipe).backbone, FakeFeed(num=32).validation
    assert max(map(len, batches)) > 2
    seen: list[int] = []
    backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    whole = validate(backbone, batches, recipe)
    assert max(seen) > 2
    seen.clear()
    found = validate(backbone, batches, replace(recipe, micro_batch=2))
    assert max(seen) == 2
    assert found.per_level == pytest.approx(whole.per_level, rel=1e-5)
