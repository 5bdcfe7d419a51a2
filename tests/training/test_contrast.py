"""Contrastive flow matching in a step: pairs are the batch's, however it is cut."""

from dataclasses import replace

import pytest
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.config import to_json
from rectiflow.base.errors import ConfigError
from rectiflow.flow import parse_formulation
from rectiflow.training.recipe import TrainRecipe, refuse_uneven
from rectiflow.training.state import TrainState
from rectiflow.training.step import accumulate_gradient, draw, forward, train_step
from rectiflow.training.validation import validate


def contrasted(**changes: object) -> TrainRecipe:
    return tiny_recipe(contrast=0.2, precision="fp32", **changes)


def test_micro_batches_have_the_same_pairs() -> None:
    recipe, batch = contrasted(batch_size=8), FakeFeed(batch_size=8).batch_at(0)
    state = TrainState.start(recipe)
    train_step(state, batch, recipe)
    found: list[tuple[float, list[torch.Tensor]]] = []
    for micro_batch in (None, 4, 2):
        state.backbone.zero_grad()
        cut = replace(recipe, micro_batch=micro_batch)
        loss, _ = accumulate_gradient(state.backbone, None, batch, cut)
        found.append(
            (loss, [p.grad.clone() for p in state.backbone.parameters() if p.grad is not None])
        )
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradients, found[0][1], rtol=1e-4, atol=1e-6)


def test_training_is_contrasted_and_validation_is_not() -> None:
    recipe, feed = contrasted(), FakeFeed()
    plain = replace(recipe, contrast=0.0)
    state = TrainState.start(recipe)
    example = draw(feed.batch_at(0), recipe)
    # The first output is zero: each error is a target's power, the sample's and its neighbour's.
    target = (example.eps - example.x0).square().flatten(1).mean(dim=1)
    other = (example.eps - example.x0)[[1, 0, 3, 2]].square().flatten(1).mean(dim=1)
    expected = (target - 0.2 * other).mean().item()
    assert train_step(state, feed.batch_at(0), recipe).loss == pytest.approx(expected, rel=1e-5)
    assert validate(state.backbone, feed.validation, recipe) == validate(
        state.backbone, feed.validation, plain
    )
    assert forward(state.backbone, example, recipe).loss > 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="contrast is 1.0; give a weight from 0 to below 1"):
        tiny_recipe(contrast=1.0)
    with pytest.raises(ConfigError, match="formulation eps/linear asks for the noise"):
        contrasted(formulation=parse_formulation("eps/linear"))
    contrasted(formulation=parse_formulation("v/cos"))
    refuse_uneven(contrasted(batch_size=4), 2)
    with pytest.raises(ConfigError, match="batch_size leaves 1 at once for each of 2 processes"):
        refuse_uneven(contrasted(batch_size=2), 2)
    with pytest.raises(ConfigError, match="micro_batch leaves 3 at once for each of 1 processes"):
        refuse_uneven(contrasted(batch_size=6, micro_batch=3), 1)
    assert "contrast" not in to_json(tiny_recipe())
