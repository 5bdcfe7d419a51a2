"""Token routing in training: drawn from keys, off in validation, and counted as what it saves."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training.fake_feed import FEATURE_DIM, FakeFeed, tiny_recipe
from training.test_backbones import config_for_fake_feed

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.base.philox import keys_for
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.meter import input_size, step_flops
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.routing import TokenRouting
from rectiflow.training.state import TrainState
from rectiflow.training.step import accumulate_gradient, train_step, training_loss
from rectiflow.training.validation import validate

HALF = TokenRouting(share=0.5)


def routed_recipe(kind: str = "mmdit", **changes: object) -> TrainRecipe:
    settings = {
        "backbone": config_for_fake_feed(kind),
        "routing": HALF,
        "precision": "fp32",
        "max_steps": 100,
    }
    return tiny_recipe(**(settings | changes))


def test_a_choice_is_a_samples_own_in_rising_order_and_even() -> None:
    keys = keys_for(0, "test", indices=torch.arange(4000))
    kept = TokenRouting(share=0.7).choose(keys, 10, stream=18)
    assert kept.shape == (4000, 3)
    assert (kept.diff(dim=1) > 0).all()
    assert torch.equal(TokenRouting(share=0.7).choose(keys[7:8], 10, stream=18), kept[7:8])
    often = kept.flatten().bincount(minlength=10) / 4000
    assert (often - 0.3).abs().max() < 0.03
    assert [TokenRouting(share=s).num_kept(16) for s in (0.0, 0.5, 0.99)] == [16, 8, 1]


@pytest.mark.parametrize("kind", ["mmdit", "mmdit3", "dit", "crossdit", "uvit"])
def test_every_kind_learns_in_micro_batches_as_in_whole_ones(kind: str) -> None:
    recipe, feed = routed_recipe(kind, batch_size=8), FakeFeed(batch_size=8)
    state = TrainState.start(recipe)
    losses = [train_step(state, feed.batch_at(0), recipe).loss for _ in range(6)]
    assert losses[-1] < losses[0]
    found: list[list[torch.Tensor]] = []
    for micro_batch in (None, 2):
        state.backbone.zero_grad()
        cut = replace(recipe, micro_batch=micro_batch)
        accumulate_gradient(state.backbone, None, feed.batch_at(1), cut)
        found.append([p.grad.clone() for p in state.backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    # Away from the start a route shows; validation takes none.
    plain = replace(recipe, routing=TokenRouting())
    batch = feed.batch_at(2)
    with torch.no_grad():
        found_losses = [training_loss(state.backbone, None, batch, r)[0] for r in (recipe, plain)]
    assert found_losses[0] != found_losses[1]
    assert validate(state.backbone, feed.validation, recipe) == validate(
        state.backbone, feed.validation, plain
    )


@pytest.mark.parametrize("kind", ["mmdit", "mmdit-x", "dit", "crossdit", "uvit"])
def test_its_operations_are_what_pytorch_counts(kind: str) -> None:
    sizes = {"depth": 3, "width": 128, "context_dim": 32, "pooled_dim": 24}
    recipe = routed_recipe(backbone=replace(CONFIGS[kind], **sizes), routing=replace(HALF, last=1))
    batch = FakeFeed().batch_at(0)
    backbone = TrainState.start(recipe).backbone
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        training_loss(backbone, None, batch, recipe)
    passes = 3 * counter.get_total_flops() / len(batch)
    assert step_flops(recipe, input_size(batch)) == pytest.approx(passes, rel=1e-3)
    assert passes < step_flops(replace(recipe, routing=TokenRouting()), input_size(batch))


def test_recipes_and_refusals() -> None:
    assert "routing" not in to_json(tiny_recipe())
    recipe = routed_recipe()
    assert from_json(TrainRecipe, to_json(recipe)) == recipe
    for routing, text in (
        ({"share": 1.0}, "routing.share is 1.0; give a part of the tokens"),
        ({"first": 2, "last": 1}, "routing goes from block 2 to 1; give two numbers"),
    ):
        with pytest.raises(ConfigError, match=text):
            TokenRouting(**routing)
    with pytest.raises(ConfigError, match="routing.last is 1, but of 2 blocks the last"):
        routed_recipe(routing=TokenRouting(share=0.5, last=1))
    deep = replace(config_for_fake_feed("mmdit"), depth=4)
    long = {"backbone": deep, "routing": TokenRouting(share=0.5, last=2)}
    aligned = RepresentationAlignment(weight=0.5, feature_dim=FEATURE_DIM)
    routed_recipe(**long, alignment=replace(aligned, block=2))
    with pytest.raises(ConfigError, match="alignment.block is 1, where tokens are missing"):
        routed_recipe(**long, alignment=replace(aligned, block=1))
