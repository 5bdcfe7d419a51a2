"""Alignment teaches the blocks up to its own, ends on time, and leaves no trace in a model."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.fake_feed import FEATURE_DIM, FakeFeed, tiny_recipe
from training.kill_and_resume import contents
from training.test_backbones import KINDS, config_for_fake_feed

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.base.log import read_events
from rectiflow.training.alignment import RepresentationAlignment, similarity
from rectiflow.training.failure import replay, save_failure
from rectiflow.training.feed import refuse_unfit
from rectiflow.training.fine_tuning import LoraTraining
from rectiflow.training.hooks import Event, Hook, StepDone
from rectiflow.training.loop import train
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState
from rectiflow.training.step import accumulate_gradient, draw, forward, train_step, training_loss

ALIGNMENT = RepresentationAlignment(weight=0.5, feature_dim=FEATURE_DIM, projector_dim=16)


class StopAfter(Hook):
    """Asks the run to stop after a number of steps, as a cluster would."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def handle(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == self._num_steps:
            os.kill(os.getpid(), signal.SIGTERM)


def aligned_recipe(**changes: object) -> TrainRecipe:
    settings: dict[str, object] = {"alignment": ALIGNMENT, "precision": "fp32"}
    return tiny_recipe(depth=2, **(settings | changes))


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_similarity_is_the_mean_cosine_of_what_lies_in_one_place() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 4, 4, generator=generator)
    tokens = features.flatten(2).mT
    assert similarity(lambda x: 3 * x, tokens, features, (4, 4)).item() == pytest.approx(1.0)
    assert similarity(lambda x: -x, tokens, features, (4, 4)).item() == pytest.approx(-1.0)
    # Four patches to a token are averaged.
    coarse = torch.randn(2, 4, 5, generator=generator)
    fine = coarse.mT.unflatten(2, (2, 2)).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert similarity(lambda x: x, coarse, fine, (2, 2)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_teaches_every_kind_up_to_its_block_and_no_further(kind: str) -> None:
    recipe = aligned_recipe(backbone=config_for_fake_feed(kind))
    state = TrainState.start(recipe)
    assert state.aligner is not None
    batch = FakeFeed().batch_at(0)
    loss, cosine = training_loss(state.backbone, state.aligner.projector, batch, recipe)
    assert loss.item() == forward(state.backbone, draw(batch, recipe), recipe).loss.item()
    assert cosine is not None
    cosine.backward()
    first, second = (any(g.any() for g in gradients(b)) for b in state.backbone.blocks)
    assert (first, second) == (True, False)
    assert any(g.any() for g in gradients(state.backbone.x_embedder))
    assert all(g.any() for g in gradients(state.aligner.projector))


@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=3e-3), Muon(rest=AdamW())])
def test_tokens_become_alike(optimizer: AdamW | Muon) -> None:
    recipe = aligned_recipe(optimizer=optimizer, max_steps=1000)
    state, batch = TrainState.start(recipe), FakeFeed().batch_at(0)
    results = [train_step(state, batch, recipe) for _ in range(30)]
    plain = replace(recipe, alignment=RepresentationAlignment())
    assert results[0].loss == train_step(TrainState.start(plain), batch, plain).loss
    found = [result.similarity for result in results]
    assert found[0] == pytest.approx(0.0, abs=0.2)
    assert found[-1] is not None
    assert found[-1] > 0.5
    assert results[-1].loss < results[0].loss


def test_micro_batches_have_the_same_gradient() -> None:
    recipe = aligned_recipe()
    state, batch = TrainState.start(recipe), FakeFeed(batch_size=8).batch_at(0)
    for step in range(3):  # away from the start, where most is zero
        train_step(state, FakeFeed(batch_size=8).batch_at(step), recipe)
    assert state.aligner is not None
    learners = torch.nn.ModuleList([state.backbone, state.aligner.projector])
    found: list[tuple[tuple[float, float], list[torch.Tensor]]] = []
    for micro_batch in (None, 2):
        learners.zero_grad()
        cut = replace(recipe, micro_batch=micro_batch)
        figures = accumulate_gradient(state.backbone, state.aligner.projector, batch, cut)
        found.append((figures, gradients(learners)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_a_run_ends_its_alignment_resumes_exactly_and_exports_a_plain_model(tmp_path: Path) -> None:
    recipe = aligned_recipe(
        alignment=replace(ALIGNMENT, until=0.5),
        max_steps=6,
        log_every=1,
        checkpoint_every=2,
        validate_every=0,
    )
    whole = train(recipe, FakeFeed(), tmp_path / "whole", progress=False)
    for steps in (2, 6):
        # Stopped by a signal: the schedule, and so the alignment's end, is that of all steps.
        train(recipe, FakeFeed(), tmp_path / "cut", progress=False, hooks=[StopAfter(steps)])
    assert contents(tmp_path / "cut") == contents(whole.run)
    events = [e for e in read_events(whole.run / "metrics.jsonl") if e["kind"] == "train"]
    assert [e["similarity"] is not None for e in events] == [True] * 3 + [False] * 3
    kept = [
        load_file(whole.run / "checkpoints" / f"step_{step:08d}" / "projector.safetensors")
        for step in (4, 6)
    ]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    exported = load_file(whole.model / "weights.safetensors")
    assert exported.keys() == TrainState.start(recipe).backbone.state_dict().keys()


def test_a_failed_step_is_replayed_with_its_features(tmp_path: Path) -> None:
    recipe = aligned_recipe()
    state, batch = TrainState.start(recipe), FakeFeed().batch_at(0)
    snapshot = state.snapshot()
    assert snapshot is not None
    save_failure(tmp_path / "failure", snapshot, batch, recipe, "store")
    assert replay(tmp_path / "failure") == train_step(state, batch, recipe)


def test_a_recipe_without_is_written_as_ever() -> None:
    assert "alignment" not in to_json(tiny_recipe())
    recipe = aligned_recipe()
    assert from_json(TrainRecipe, to_json(recipe)) == recipe


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weight": -1.0}, "alignment.weight is -1.0; give a number of at least 0"),
        ({"until": 0.0}, "alignment.until is 0.0; give a share of the training"),
        ({"projector_dim": 0}, "alignment.projector_dim is 0; it must be at least 1"),
    ],
)
def test_impossible_numbers(changes: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(ALIGNMENT, **changes)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="alignment.block is 2, but the backbone's blocks count"):
        aligned_recipe(alignment=replace(ALIGNMENT, block=2))
    with pytest.raises(ConfigError, match="alignment.weight is set together with lora or prior"):
        aligned_recipe(start_from="tiny", lora=LoraTraining(rank=2))
    with pytest.raises(ConfigError, match="compile_blocks is set together with alignment"):
        aligned_recipe(compile_blocks=True)
    facts = FakeFeed().facts
    refuse_unfit(facts, aligned_recipe())
    with pytest.raises(ConfigError, match="feature_dim is 6, the store has no features; encode"):
        refuse_unfit(replace(facts, feature_dim=None), aligned_recipe())
    with pytest.raises(ConfigError, match="alignment.feature_dim is 6, the store has 7"):
        refuse_unfit(replace(facts, feature_dim=7), aligned_recipe())
