"""Spikes are judged by a robust rule, taken back, and taken back the same way when continued."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training.fake_feed import FEATURE_DIM, FakeFeed, tiny_recipe

from rectiflow.base.errors import CheckpointError, ConfigError, DivergedError
from rectiflow.base.log import read_events
from rectiflow.data.records import Batch
from rectiflow.training import loop
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.ema import EmaConfig
from rectiflow.training.hooks import Event, Hook, RolledBack, StepDone
from rectiflow.training.loop import train
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.spikes import SpikeGuard, SpikeMemory
from rectiflow.training.state import TrainState
from rectiflow.training.step import StepResult, train_step
from rectiflow.training.tensor_files import read_tensors

GUARD = SpikeGuard(threshold=30.0, window=10)


class SpikyFeed(FakeFeed):
    """Latents of some batches are a thousand times too large, or no numbers."""

    def __init__(self, *places: int, factor: float = 1e3) -> None:
        super().__init__()
        self.places, self.factor = places, factor

    def batch_at(self, step: int) -> Batch:
        batch = super().batch_at(step)
        if step in self.places:
            batch = replace(batch, x0_mean=self.factor * batch.x0_mean)
        return batch


class Act(Hook):
    """Does something at one event."""

    def __init__(self, kind: type, step: int, act) -> None:
        self.kind, self.step, self.act = kind, step, act

    def handle(self, event: Event) -> None:
        if isinstance(event, self.kind) and event.step == self.step:
            self.act()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places of the batches that steps are made with, in order."""
    places: list[int] = []

    def noted(state: TrainState, batch: Batch, *rest: Any, **options: Any) -> StepResult:
        places.append(int(batch.positions[0]) // len(batch))
        return train_step(state, batch, *rest, **options)

    monkeypatch.setattr(loop, "train_step", noted)
    return places


def recipe_with(guard: SpikeGuard = GUARD, **changes: object) -> TrainRecipe:
    settings = {
        "max_steps": 16,
        "log_every": 1,
        "validate_every": 0,
        "precision": "fp32",
        "optimizer": AdamW(),
        "spikes": guard,
    }
    return tiny_recipe(**(settings | changes))


def weights(run: Path, step: int = 16) -> dict[str, Tensor]:
    return read_tensors(run / "checkpoints" / f"step_{step:08d}" / "weights.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_bound_is_the_median_plus_so_many_mads() -> None:
    guard = SpikeGuard(threshold=3.0, window=11)
    # Two outliers of old do not raise it: median 6, distances 0…5, 94 and 994, MAD 3.
    values = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100, 1000]
    assert guard.bound(values) == 6.0 + 3.0 * 3.0
    assert guard.bound(values[1:]) is None
    # Equal values leave some room.
    assert guard.bound([2.0] * 11) == pytest.approx(2.0 + 3.0 * 0.02)


def test_a_spike_does_not_enter_the_memory() -> None:
    memory = SpikeMemory(losses=[1.0] * 10, gradient_norms=[2.0] * 10)
    assert GUARD.judge(memory, 1.1, 2.1) is None
    assert (memory.losses[-1], len(memory.losses)) == (1.1, 10)
    spike = GUARD.judge(memory, 9.0, 2.1)
    assert str(spike) == "the loss is 9, above 1.3"
    assert str(GUARD.judge(memory, 1.0, 9.0)) == "the gradient norm is 9, above 2.6"
    assert str(GUARD.judge(memory, float("nan"), 9.0)) == "the loss is nan"
    assert memory.losses[-1] == 1.1
    assert SpikeGuard().judge(memory, 9.0, 9.0) is None


def test_left_out_places_are_passed_over_in_order() -> None:
    memory = SpikeMemory()
    memory.skip([7, 3])
    memory.skip([4, 3])
    taken = [memory.place_of(step) for step in range(8)]
    assert taken == [0, 1, 2, 5, 6, 8, 9, 10]
    assert SpikeGuard(skip=4).places_to_skip(9, from_place=7) == [7, 8, 9]


@pytest.fixture(scope="module")
def without_the_batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The last weights of a run whose data never had the batch at place 12."""

    class Without(FakeFeed):
        def batch_at(self, step: int) -> Batch:
            return super().batch_at(step if step < 12 else step + 1)

    run = tmp_path_factory.mktemp("never")
    train(recipe_with(SpikeGuard()), Without(), run, progress=False)
    return weights(run)


def test_a_run_goes_back_and_ends_as_if_the_batch_had_never_been(
    without_the_batch: dict[str, Tensor], taken: list[int], tmp_path: Path
) -> None:
    events: list[Event] = []
    listener = Act(RolledBack, 13, lambda: None)
    listener.handle = events.append
    result = train(recipe_with(), SpikyFeed(12), tmp_path / "run", progress=False, hooks=[listener])
    assert result.step == 16
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert (back.step, back.back_to, back.skipped) == (13, 10, (12,))
    assert taken == [*range(13), 10, 11, *range(13, 17)]
    (record,) = read_events(tmp_path / "run" / "spikes.jsonl")
    assert (record["step"], record["back_to"], record["skipped"]) == (13, 10, [12])
    assert record["value"] > record["bound"]
    # Steps that were taken back have left no line, and the others one each.
    logged = read_events(tmp_path / "run" / "metrics.jsonl", "train")
    assert [event["step"] for event in logged] == list(range(1, 17))

    assert same(weights(tmp_path / "run"), without_the_batch)


@pytest.mark.parametrize("moment", ["after the decision", "after going back"])
def test_a_continued_run_decides_alike(
    moment: str, without_the_batch: dict[str, Tensor], taken: list[int], tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    kind, step = (RolledBack, 13) if moment == "after the decision" else (StepDone, 12)
    run = tmp_path / "cut"
    armed = iter([False, True])  # step 12 comes twice

    def die_if_armed() -> None:
        if kind is RolledBack or next(armed):
            die()

    with pytest.raises(Killed):
        hooks = [Act(kind, step, die_if_armed)]
        train(recipe_with(), SpikyFeed(12), run, progress=False, hooks=hooks)
    taken.clear()
    train(recipe_with(), SpikyFeed(12), run, progress=False)
    assert 12 not in taken
    assert len(read_events(run / "spikes.jsonl")) == 1
    assert same(weights(run), without_the_batch)


def test_the_memory_survives_a_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop = Act(StepDone, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(recipe_with(), SpikyFeed(12), run, progress=False, hooks=[stop])
    train(recipe_with(), SpikyFeed(12), run, progress=False)
    (record,) = read_events(run / "spikes.jsonl")
    assert (record["step"], record["back_to"]) == (13, 12)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[TrainState]:
    """The states that are built, in order."""
    states: list[TrainState] = []
    start = TrainState.start

    def noted(*arguments: object, **keywords: object) -> TrainState:
        states.append(start(*arguments, **keywords))
        return states[-1]

    monkeypatch.setattr(TrainState, "start", noted)
    return states


def test_going_back_builds_no_second_state(built: list[TrainState], tmp_path: Path) -> None:
    train(recipe_with(), SpikyFeed(12), tmp_path / "run", progress=False)
    assert len(read_events(tmp_path / "run" / "spikes.jsonl")) == 1
    assert len(built) == 1


def averaged(run: Path) -> dict[str, Tensor]:
    (kept,) = (run / "averages").glob("step_*")
    return read_tensors(kept / "sigma_rel_0.1.safetensors")


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_what_starts_over_is_what_never_began(
    optimizer: AdamW | Muon, built: list[TrainState], tmp_path: Path
) -> None:
    """Weights, averages, optimizers and an alignment's projector, without a second state."""

    class Without(FakeFeed):
        def batch_at(self, step: int) -> Batch:
            return super().batch_at(step if step < 2 else step + 1)

    changes = {
        "max_steps": 4,
        "optimizer": optimizer,
        "ema": EmaConfig(sigma_rels=(0.1,), snapshot_every=4),
        "alignment": RepresentationAlignment(weight=0.5, feature_dim=FEATURE_DIM, projector_dim=8),
    }
    plain = recipe_with(SpikeGuard(), **changes)
    train(plain, Without(), tmp_path / "never", progress=False)
    built.clear()
    feed = SpikyFeed(2, factor=float("nan"))
    train(recipe_with(**changes), feed, tmp_path / "run", progress=False)
    assert len(built) == 1
    never, over = (tmp_path / name / "checkpoints" / "step_00000004" for name in ("never", "run"))
    files = sorted(file.name for file in never.glob("*.safetensors"))
    assert len(files) == 6
    for file in files:
        assert same(read_tensors(never / file), read_tensors(over / file)), file
    assert same(averaged(tmp_path / "never"), averaged(tmp_path / "run"))


def test_a_run_starts_over_with_the_very_model_that_it_started_from(tmp_path: Path) -> None:
    base = tmp_path / "base"
    train(recipe_with(max_steps=1), FakeFeed(), base, progress=False)
    recipe = recipe_with(start_from=str(base), max_steps=4)
    feed = SpikyFeed(2, factor=float("nan"))

    def go_on_with_the_base() -> None:
        train(recipe_with(max_steps=2), FakeFeed(), base, max_steps=2, progress=False)

    with pytest.raises(CheckpointError, match="is not the model that the run was begun with"):
        hooks = [Act(StepDone, 1, go_on_with_the_base)]
        train(recipe, feed, tmp_path / "run", progress=False, hooks=hooks)


def test_what_was_drawn_and_measured_of_steps_taken_back_is_forgotten(tmp_path: Path) -> None:
    def draw(model: nn.Module, prompts: tuple[str, ...]) -> np.ndarray:
        return np.zeros((len(prompts), 4, 4, 3), np.uint8)

    run = tmp_path / "run"
    recipe = recipe_with(sample_every=3, sample_prompts=("a",), validate_every=3)
    stop = Act(RolledBack, 13, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = train(recipe, SpikyFeed(12), run, on_sample=draw, progress=False, hooks=[stop])
    assert (result.step, result.validation) == (10, None)
    pictures = sorted(path.name for path in (run / "samples").iterdir())
    assert pictures == [f"step_{step:08d}.png" for step in (3, 6, 9)]


def test_before_the_first_checkpoint_a_run_starts_over(taken: list[int], tmp_path: Path) -> None:
    feed = SpikyFeed(2, factor=float("nan"))
    train(recipe_with(max_steps=4), feed, tmp_path / "run", progress=False)
    assert taken == [0, 1, 2, 0, 1, 3, 4]
    (record,) = read_events(tmp_path / "run" / "spikes.jsonl")
    assert (record["value"], record["bound"], record["back_to"]) == ("nan", None, 0)


def test_after_so_many_spikes_the_run_stops(tmp_path: Path) -> None:
    guard = replace(GUARD, limit=1)
    text = r"stopped at step 13: the loss is .*, above .*, and the run has gone back 1 times"
    for _ in range(2):  # also when it is continued
        with pytest.raises(DivergedError, match=text):
            train(recipe_with(guard), SpikyFeed(11, 13), tmp_path / "run", progress=False)
    # No number at all leaves what reproduces it, as without a guard.
    feed = SpikyFeed(1, 2, factor=float("nan"))
    with pytest.raises(DivergedError, match=r"the loss is nan .*failure_step_00000002"):
        train(recipe_with(guard), feed, tmp_path / "nan", progress=False)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threshold": -1.0}, r"spikes.threshold is -1.0; give a number of MADs such as 20, or 0"),
        ({"window": 5}, "spikes.window is 5; it must be at least 10"),
        ({"skip": 0}, "spikes.skip is 0; it must be at least 1"),
        ({"limit": 0}, "spikes.limit is 0; it must be at least 1"),
    ],
)
def test_impossible_guards_are_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SpikeGuard(**settings)


def test_a_guard_needs_checkpoints() -> None:
    with pytest.raises(ConfigError, match=r"spikes.threshold is set and checkpoint_every is 0"):
        recipe_with(checkpoint_every=0)
