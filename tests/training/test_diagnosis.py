"""What is told of a step's blocks, against the same sums taken from the outside."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.log import read_events
from rectiflow.models.attention_probe import observe_attention
from rectiflow.training.diagnosis import Diagnose
from rectiflow.training.hooks import Diagnosed, TensorBoard
from rectiflow.training.loop import train
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, forward, train_step
from rectiflow.training.tensor_files import read_tensors


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_the_parts_make_up_the_whole(optimizer: AdamW | Muon) -> None:
    recipe = tiny_recipe(depth=2, optimizer=optimizer, gradient_clip=1e-3, precision="fp32")
    state, feed = TrainState.start(recipe), FakeFeed()
    train_step(state, feed.batch_at(0), recipe)  # leaves nothing zero that gates the blocks
    before = {name: p.detach().clone() for name, p in state.backbone.named_parameters()}
    with torch.no_grad(), observe_attention(state.backbone) as seen:
        forward(state.backbone, draw(feed.batch_at(1), recipe), recipe)
    with Diagnose(state.backbone) as diagnose:
        result = train_step(state, feed.batch_at(1), recipe, before_update=diagnose.before_update)
    found = diagnose.read()
    parts = [*found.blocks, found.around]
    # Before clipping, although the optimizer has seen clipped ones and may have overwritten them.
    assert result.gradient_norm > recipe.gradient_clip
    assert math.hypot(*(part.gradient_norm for part in parts)) == pytest.approx(
        result.gradient_norm, rel=1e-5
    )
    assert [block.largest_logit for block in found.blocks] == [b.max_logit for b in seen]
    assert [block.entropy for block in found.blocks] == [b.entropy for b in seen]
    assert (found.around.largest_logit, found.around.entropy) == (None, None)
    for i, block in enumerate(found.blocks):
        names = [name for name in before if name.startswith(f"joint_blocks.{i}.")]
        after = dict(state.backbone.named_parameters())
        moved = math.hypot(*((after[n] - before[n]).norm().item() for n in names))
        size = math.hypot(*(before[n].norm().item() for n in names))
        assert block.update_ratio == pytest.approx(moved / size, rel=1e-4)


def test_a_diagnosed_run_has_the_same_weights_and_tells_of_every_block(tmp_path: Path) -> None:
    recipe = tiny_recipe(depth=2, max_steps=5, validate_every=0)
    train(recipe, FakeFeed(), tmp_path / "plain", progress=False)
    watched = replace(recipe, diagnose_every=2)
    train(watched, FakeFeed(), tmp_path / "watched", progress=False)
    for stem in ("weights", "ema", "optimizer"):
        ours, theirs = (
            read_tensors(tmp_path / run / "checkpoints/step_00000005" / f"{stem}.safetensors")
            for run in ("plain", "watched")
        )
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    events = read_events(tmp_path / "watched" / "metrics.jsonl", "diagnosis")
    assert [event["step"] for event in events] == [2, 4, 5]
    assert all(len(event["blocks"]) == 2 for event in events)
    assert events[-1]["blocks"][0]["update_ratio"] > 0
    # An earlier run may be looked into from some step on.
    train(watched, FakeFeed(), tmp_path / "plain", max_steps=6, progress=False)
    events = read_events(tmp_path / "plain" / "metrics.jsonl", "diagnosis")
    assert [event["step"] for event in events] == [6]


def test_tensorboard_has_a_curve_for_each_block(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny_recipe(depth=2, precision="fp32")
    state = TrainState.start(recipe)
    with Diagnose(state.backbone) as diagnose:
        train_step(state, FakeFeed().batch_at(0), recipe, before_update=diagnose.before_update)
    hook = TensorBoard(tmp_path, after_step=0)
    hook.handle(Diagnosed(step=1, diagnosis=diagnose.read()))
    hook.close()
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    names = set(log.Tags()["scalars"])
    assert {"largest_logit/block_02", "update_ratio/block_01", "gradient_norm/around"} <= names
    assert "largest_logit/around" not in names
