import dataclasses
import math
import platform
from pathlib import Path

import pytest
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift, rectified_flow
from rectiflow.models import precision
from rectiflow.models.precision import compute_dtype, has_fast_bf16
from rectiflow.training.optimizers import AdamW
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, train_step
from rectiflow.training.validation import LEVELS, validate


def test_a_draw_depends_on_the_samples_key_and_not_on_its_neighbours() -> None:
    feed, recipe = FakeFeed(), tiny_recipe()
    whole = draw(feed.rows(torch.arange(8), epoch=0), recipe)
    alone = draw(feed.rows(torch.tensor([5]), epoch=0), recipe)
    for name in ("x0", "eps", "t"):
        assert torch.equal(getattr(whole, name)[5:6], getattr(alone, name))
    assert torch.equal(whole.conditioning.context[5:6], alone.conditioning.context)
    assert torch.equal(whole.conditioning.pooled[5:6], alone.conditioning.pooled)


def test_another_epoch_draws_anew() -> None:
    feed, recipe = FakeFeed(), tiny_recipe()
    first = draw(feed.rows(torch.arange(4), epoch=0), recipe)
    second = draw(feed.rows(torch.arange(4), epoch=1), recipe)
    assert (first.eps != second.eps).any(dim=(1, 2, 3)).all()
    assert (first.t != second.t).all()


def test_draws_have_the_stated_distributions() -> None:
    feed = FakeFeed(num=512)
    recipe = tiny_recipe(formulation=rectified_flow(mean=1.0))
    batch = feed.rows(torch.arange(512), epoch=0)
    drawn = draw(batch, recipe)
    standard = (drawn.x0 - batch.x0_mean) / torch.exp(0.5 * batch.x0_logvar)
    for noise in (standard, drawn.eps):
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 1) < 0.01
    assert abs((standard * drawn.eps).mean()) < 0.01
    assert abs(torch.logit(drawn.t).mean() - 1.0) < 0.15


def test_stratified_times_have_the_density_with_less_scatter_and_no_batches_of_their_own() -> None:
    formulation = rectified_flow(mean=1.0)
    recipe = tiny_recipe(formulation=formulation, stratified_times=True)
    feed = FakeFeed(batch_size=16)
    batches = [draw(feed.batch_at(step), recipe).t for step in range(64)]
    means = torch.stack([torch.logit(t).mean() for t in batches])
    # independent draws of 16 scatter by 1/4; these leave each sixteenth about one sample
    assert abs(means.mean() - 1.0) < 0.02
    assert means.std() < 0.1
    finer = FakeFeed(batch_size=4)
    assert torch.equal(
        torch.cat([draw(finer.batch_at(step), recipe).t for step in range(8)]),
        torch.cat(batches[:2]),
    )
    other = draw(feed.batch_at(0), dataclasses.replace(recipe, seed=1)).t
    assert not torch.equal(other, batches[0])


def test_the_recipes_shift_moves_the_times_of_training_and_validation() -> None:
    feed = FakeFeed(num=16)
    plain = tiny_recipe()
    shifted = tiny_recipe(shift=ResolutionShift(alpha=6.0))
    batch = feed.rows(torch.arange(16), epoch=0)
    times = draw(batch, plain).t
    assert torch.allclose(draw(batch, shifted).t, 6 * times / (1 + 5 * times))
    backbone = TrainState.start(plain).backbone
    assert validate(backbone, [batch], plain).levels == LEVELS
    levels = validate(backbone, [batch], shifted).levels
    assert levels == pytest.approx([6 * t / (1 + 5 * t) for t in LEVELS], abs=1e-6)


def test_each_encoder_is_dropped_on_its_own_at_the_papers_rate() -> None:
    feed = FakeFeed(num=4096)
    context = draw(feed.rows(torch.arange(4096), epoch=0), tiny_recipe()).conditioning.context
    dropped = torch.stack(
        [
            (context[:, :2, :8] == 0).all(dim=(1, 2)),
            (context[:, :2, 8:24] == 0).all(dim=(1, 2)),
            (context[:, 2:] == 0).all(dim=(1, 2)),
        ]
    ).float()
    assert ((dropped.mean(dim=1) - 0.464).abs() < 0.03).all()
    assert abs(dropped.prod(dim=0).mean() - 0.464**3) < 0.03


def test_the_pooled_vector_is_dropped_by_itself_and_nothing_else_changes() -> None:
    feed = FakeFeed(num=4096)
    batch = feed.rows(torch.arange(4096), epoch=0)
    recipe = tiny_recipe(encoder_dropout=0.0)
    always = draw(batch, recipe)
    half = draw(batch, dataclasses.replace(recipe, pooled_dropout=0.5))
    dropped = (half.conditioning.pooled == 0).all(dim=1)
    assert abs(dropped.float().mean() - 0.5) < 0.03
    assert torch.equal(half.conditioning.pooled[~dropped], always.conditioning.pooled[~dropped])
    assert torch.equal(half.conditioning.context, always.conditioning.context)
    assert torch.equal(half.t, always.t)
    assert torch.equal(half.eps, always.eps)


def test_no_dropout_keeps_every_encoder() -> None:
    feed = FakeFeed(num=64)
    recipe = tiny_recipe(encoder_dropout=0.0)
    context = draw(feed.rows(torch.arange(64), epoch=0), recipe).conditioning.context
    assert (context[:, 2:] != 0).all()


def test_a_step_moves_weights_counts_and_averages() -> None:
    feed, recipe = FakeFeed(), tiny_recipe(depth=2)
    state = TrainState.start(recipe)
    before = state.backbone.final_layer.linear.weight.detach().clone()
    result = train_step(state, feed.batch_at(0), recipe)
    assert result.is_finite
    assert state.step == 1
    assert state.loss_window == [result.loss]
    assert (state.backbone.final_layer.linear.weight != before).any()
    for average, weight in zip(state.ema.model.parameters(), state.backbone.parameters()):
        assert torch.equal(average, weight)


def test_the_output_starts_at_zero_so_the_first_loss_is_the_targets_power() -> None:
    feed, recipe = FakeFeed(), tiny_recipe()
    drawn = draw(feed.batch_at(0), recipe)
    result = train_step(TrainState.start(recipe), feed.batch_at(0), recipe)
    assert math.isclose(result.loss, float((drawn.eps - drawn.x0).square().mean()), rel_tol=1e-5)


def test_gradients_are_clipped_to_the_set_norm() -> None:
    feed = FakeFeed()
    recipe = tiny_recipe(gradient_clip=0.01, optimizer=AdamW())
    state = TrainState.start(recipe)
    train_step(state, feed.batch_at(0), recipe)
    norm = torch.nn.utils.get_total_norm([p.grad for p in state.backbone.parameters()])
    assert math.isclose(norm, 0.01, rel_tol=1e-3)


def test_a_non_finite_loss_leaves_the_state_alone() -> None:
    feed, recipe = FakeFeed(poisoned_step=1), tiny_recipe()
    state = TrainState.start(recipe)
    before = {name: p.detach().clone() for name, p in state.backbone.named_parameters()}
    result = train_step(state, feed.batch_at(0), recipe)
    assert not result.is_finite
    assert state.step == 0
    assert state.loss_window == []
    assert all(torch.equal(p, before[name]) for name, p in state.backbone.named_parameters())


def test_training_learns_the_fake_data() -> None:
    feed = FakeFeed(num=4)
    recipe = tiny_recipe(max_steps=60, optimizer=AdamW(learning_rate=3e-3))
    state = TrainState.start(recipe)
    before = validate(state.backbone, feed.validation, recipe)
    for step in range(60):
        train_step(state, feed.batch_at(step), recipe)
    after = validate(state.backbone, feed.validation, recipe)
    assert after.loss < 0.8 * before.loss


def test_validation_is_repeatable_by_level_and_independent_of_batching() -> None:
    feed, recipe = FakeFeed(), tiny_recipe(precision="fp32")
    state = TrainState.start(recipe)
    for step in range(3):
        train_step(state, feed.batch_at(step), recipe)
    whole = validate(state.backbone, [feed.rows(torch.arange(4), epoch=-1)], recipe)
    parts = [feed.rows(torch.arange(i, i + 1), epoch=-1) for i in range(4)]
    split = validate(state.backbone, parts, recipe)
    assert len(whole.per_level) == len(LEVELS) == 7
    assert math.isclose(whole.loss, sum(whole.per_level) / 7)
    torch.testing.assert_close(whole.per_level, split.per_level, rtol=1e-5, atol=1e-6)
    assert validate(state.backbone, feed.validation, recipe) == validate(
        state.backbone, feed.validation, recipe
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 processor")
def test_emulated_bfloat16_does_not_count_as_fast() -> None:
    (flags,) = {
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
    }
    assert has_fast_bf16() == bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def test_precision_is_refused_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compute_dtype("fp32") == torch.float32
    assert compute_dtype("auto") == (torch.bfloat16 if has_fast_bf16() else torch.float32)
    monkeypatch.setattr(precision, "has_fast_bf16", lambda *_: False)
    assert compute_dtype("auto") == torch.float32
    with pytest.raises(ConfigError, match="this processor has no bfloat16 matrix instructions"):
        compute_dtype("bf16")


def test_full_precision_runs_without_autocast() -> None:
    feed = FakeFeed()
    recipe = tiny_recipe(precision="fp32")
    state = TrainState.start(recipe)
    full = [train_step(state, feed.batch_at(step), recipe).loss for step in range(3)]
    state = TrainState.start(dataclasses.replace(recipe, precision="auto"))
    auto = [
        train_step(state, feed.batch_at(s), dataclasses.replace(recipe, precision="auto")).loss
        for s in range(3)
    ]
    torch.testing.assert_close(full, auto, rtol=0.02, atol=0.0)


def test_what_is_frozen_has_no_say_in_how_far_the_others_move() -> None:
    recipe = tiny_recipe(
        optimizer=AdamW(rates={"joint_blocks": 0.0}), gradient_clip=1e9, precision="fp32"
    )
    state = TrainState.start(recipe)
    result = train_step(state, FakeFeed().batch_at(0), recipe)
    gradients = {name: p.grad for name, p in state.backbone.named_parameters()}
    moving = [g for name, g in gradients.items() if not name.startswith("joint_blocks")]
    assert 0 < len(moving) < len(gradients)
    expected = torch.nn.utils.get_total_norm(moving)
    assert result.gradient_norm == pytest.approx(expected.item(), rel=1e-6)
