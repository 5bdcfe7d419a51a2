import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.config import from_json
from rectiflow.base.errors import CheckpointError, DivergedError, StoreError, UserError
from rectiflow.base.log import read_events
from rectiflow.data.records import Batch
from rectiflow.generation.settings import CardSampling
from rectiflow.sampling import CFGZeroStar, Heun, SamplingDefaults
from rectiflow.training import loop as loop_module
from rectiflow.training.failure import replay
from rectiflow.training.hooks import Event, Hook, StepDone, Validated
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.tensor_files import read_tensors


class Listener(Hook):
    """Keeps all events, and does something at one step."""

    def __init__(self, step: int = 0, act: Callable[[], object] = lambda: None) -> None:
        self.events: list[Event] = []
        self.step, self.act = step, act
        self.is_closed = False

    def handle(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StepDone) and event.step == self.step:
            self.act()

    def close(self) -> None:
        self.is_closed = True


def run_quietly(
    recipe: TrainRecipe, out: Path, feed: FakeFeed | None = None, **options: Any
) -> TrainResult:
    return train(recipe, feed or FakeFeed(), out, progress=False, **options)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:08d}"
    stems = ("weights", "ema", "optimizer")
    return {
        f"{stem}.{name}": value
        for stem in stems
        for name, value in read_tensors(folder / f"{stem}.safetensors").items()
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_run_leaves_everything_that_it_promises(tmp_path: Path) -> None:
    run = tmp_path / "run"
    listener = Listener()
    result = run_quietly(tiny_recipe(), run, hooks=[listener])
    assert (result.step, result.max_steps, result.interrupted) == (12, 12, None)
    assert listener.is_closed
    assert {p.name for p in run.iterdir()} == {
        ".lock",
        "recipe.json",
        "environment.json",
        "emphasis.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
    }
    # every 5 and at the end, the last two kept
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step_00000010", "step_00000012"}
    assert [e["step"] for e in read_events(run / "metrics.jsonl", "train")] == [3, 6, 9, 12]
    usages = [e["usage"] for e in read_events(run / "metrics.jsonl", "train")]
    assert all(0 < sum(usage["shares"].values()) <= 1.001 for usage in usages)
    assert usages[2]["shares"]["validation"] > 0  # of the step before
    assert usages[0]["mfu"] is None
    assert usages[0]["flops_per_second"] > 0
    validations = read_events(run / "metrics.jsonl", "validation")
    assert [e["step"] for e in validations] == [6, 12]
    assert len(validations[0]["raw"]["per_level"]) == len(validations[0]["ema"]["per_level"]) == 7
    assert result.validation is not None
    assert result.validation.ema.loss == validations[-1]["ema"]["loss"]


def test_the_exported_model_is_the_average_and_says_what_it_needs(tmp_path: Path) -> None:
    sampling = SamplingDefaults(num_steps=9, solver=Heun(), guidance=CFGZeroStar())
    recipe, feed = tiny_recipe(sampling=sampling), FakeFeed()
    result = run_quietly(recipe, tmp_path / "run", feed)
    card = json.loads((result.model / "model.json").read_text())
    assert card["format"] == 1
    assert card["backbone"]["depth"] == 1
    assert card["formulation"]["timesteps"]["kind"] == "LogitNormal"
    assert card["autoencoder"] == feed.facts.autoencoder
    assert card["text"] == feed.facts.text
    assert (card["world"], card["resolution_px"]) == ("small", 32)
    assert SamplingDefaults.of(from_json(CardSampling, card["sampling"])) == sampling
    assert card["sampling"]["shift"] == 1.0
    assert card["provenance"]["images_seen"] == 48
    exported = read_tensors(result.model / "weights.safetensors")
    average = read_tensors(tmp_path / "run" / "checkpoints" / "step_00000012" / "ema.safetensors")
    assert_same(exported, average)


def test_the_mean_loss_of_a_log_line_is_that_of_its_steps(tmp_path: Path) -> None:
    listener = Listener()
    run_quietly(tiny_recipe(max_steps=6), tmp_path / "run", hooks=[listener])
    losses = [event.loss for event in listener.events if isinstance(event, StepDone)]
    logged = read_events(tmp_path / "run" / "metrics.jsonl", "train")
    assert [e["loss"] for e in logged] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(number: int, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_quietly(tiny_recipe(), whole)
    handler = signal.getsignal(number)
    stopper = Listener(4, lambda: os.kill(os.getpid(), number))
    result = run_quietly(tiny_recipe(), cut, hooks=[stopper])
    assert (result.step, result.interrupted) == (4, number)
    assert signal.getsignal(number) == handler
    assert (cut / "model" / "weights.safetensors").exists()
    result = run_quietly(tiny_recipe(), cut)
    assert (result.step, result.interrupted) == (12, None)
    assert_same(weights(whole, 12), weights(cut, 12))
    sessions = json.loads((cut / "environment.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 4]


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def press_twice() -> None:
        noting = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        # Two that come before the first is noted count as one.
        while signal.getsignal(signal.SIGINT) == noting:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10.0)

    # Whoever started the tests in the background had them ignore the key.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_quietly(tiny_recipe(), tmp_path / "run", hooks=[Listener(2, press_twice)])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_may_be_made_longer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_quietly(tiny_recipe(), run, max_steps=4)
    # Without a number it keeps its own, whatever the recipe says.
    assert run_quietly(tiny_recipe(), run).step == 4
    result = run_quietly(tiny_recipe(), run, max_steps=7)
    assert (result.step, result.max_steps) == (7, 7)
    assert json.loads((run / "recipe.json").read_text())["max_steps"] == 7


def test_a_run_in_two_calls_is_the_run_in_one(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    first = run_quietly(recipe, tmp_path / "two", until=7)
    assert (first.step, first.max_steps, first.interrupted) == (7, 12, None)
    assert (first.model / "weights.safetensors").is_file()
    run_quietly(recipe, tmp_path / "two")
    run_quietly(recipe, tmp_path / "one")
    assert_same(weights(tmp_path / "two", 12), weights(tmp_path / "one", 12))


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_quietly(tiny_recipe(max_steps=4), run)
    with pytest.raises(UserError, match=r"already made 4 steps, more than max_steps 3; give a"):
        run_quietly(tiny_recipe(), run, max_steps=3)


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(max_steps=2)
    run_quietly(recipe, run)
    deeper = dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, depth=2))
    text = (
        r"backbone.depth is 1 in the run and 2 in the recipe. Continue it with its own recipe "
        r"\(test\) or choose another run folder. A continued run may change only name, max_steps,"
    )
    with pytest.raises(CheckpointError, match=text):
        run_quietly(deeper, run)


def test_a_run_on_another_store_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_quietly(tiny_recipe(max_steps=2), run)
    with pytest.raises(CheckpointError, match=r"was trained on other data .* continue with the"):
        run_quietly(tiny_recipe(max_steps=2), run, FakeFeed(seed=1))


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    refusals: list[str] = []

    def train_here_too() -> None:
        with pytest.raises(UserError) as caught:
            run_quietly(tiny_recipe(), run)
        refusals.append(str(caught.value))

    run_quietly(tiny_recipe(max_steps=3), run, hooks=[Listener(2, train_here_too)])
    assert refusals == [
        f"another process (number {os.getpid()}) is at work in {run}; wait until it ends, stop "
        "it, or choose another folder"
    ]


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not a run: it holds 'thesis.txt' and no recipe.json"):
        run_quietly(tiny_recipe(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match=r"thesis.txt is a file; choose another place"):
        run_quietly(tiny_recipe(), tmp_path / "thesis.txt")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot .* the run .*/file/run: a part of the path"):
        run_quietly(tiny_recipe(), tmp_path / "file" / "run")


def test_a_broken_latent_stops_the_run_with_what_reproduces_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"stopped at step 7: the loss is nan .*failure_step_0000"):
        run_quietly(tiny_recipe(), run, FakeFeed(poisoned_step=7))
    folder = run / "failure_step_00000007"
    again = replay(folder)
    assert not again.is_finite
    # With sound data the same run goes on from its last checkpoint.
    assert run_quietly(tiny_recipe(), run).step == 12


def test_an_absurd_learning_rate_stops_the_run_the_same_way_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(max_steps=200, checkpoint_every=0, validate_every=0)
    recipe = dataclasses.replace(
        recipe, optimizer=dataclasses.replace(recipe.optimizer, learning_rate=1e30)
    )
    texts: list[str] = []
    for _ in range(2):
        with pytest.raises(UserError, match="Try a lower learning rate") as caught:
            run_quietly(recipe, run)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert not replay(next(run.glob("failure_step_*"))).is_finite


def test_a_full_disk_does_not_hide_that_a_run_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise UserError(f"cannot write {path}: no space left on the disk")

    monkeypatch.setattr(loop_module, "save_failure", full)
    text = "stopped at step 7: the loss is nan .*could not be kept: cannot write .*: no space left"
    with pytest.raises(DivergedError, match=text):
        run_quietly(tiny_recipe(), tmp_path / "run", FakeFeed(poisoned_step=7))


def test_a_model_that_a_killed_session_was_replacing_is_there_again_at_once(
    tmp_path: Path,
) -> None:
    run, recipe = tmp_path / "run", tiny_recipe(max_steps=6)
    run_quietly(recipe, run, until=3)
    # As between the two renames of an export.
    (run / "model").rename(run / ".model.tmp-old")
    steps: list[int] = []

    def look() -> None:
        steps.append(json.loads((run / "model" / "model.json").read_text())["provenance"]["step"])

    run_quietly(recipe, run, until=5, hooks=[Listener(4, look)])
    assert steps == [3]


def test_sample_pictures_come_from_the_average_and_are_kept_as_a_grid(tmp_path: Path) -> None:
    seen: list[tuple[bool, tuple[str, ...]]] = []

    def draw_samples(model: nn.Module, prompts: tuple[str, ...]) -> np.ndarray:
        seen.append((model.training, prompts))
        return np.full((len(prompts), 6, 8, 3), 7, np.uint8)

    recipe = tiny_recipe(
        max_steps=5, sample_every=3, sample_prompts=("a red circle", "a blue square")
    )
    run_quietly(recipe, tmp_path / "run", on_sample=draw_samples)
    assert seen == [(False, recipe.sample_prompts)] * 2
    names = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert names == ["step_00000003.png", "step_00000005.png"]
    with Image.open(tmp_path / "run" / "samples" / names[0]) as image:
        assert image.size == (2 * 8 + 3 * 2, 6 + 2 * 2)


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_quietly(tiny_recipe(), tmp_path / "run")
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    assert [e.step for e in log.Scalars("train/loss")] == [3, 6, 9, 12]
    assert [e.step for e in log.Scalars("validation_ema/t=0.500")] == [6, 12]


class ReadFeed(FakeFeed):
    """Notes which batches have been read, and cannot read one of them."""

    def __init__(self, *, broken: int | None = None) -> None:
        super().__init__()
        self.places: list[int] = []
        self.broken, self.has_read = broken, threading.Condition()

    def batch_at(self, step: int) -> Batch:
        with self.has_read:
            self.places.append(step)
            self.has_read.notify_all()
        if step == self.broken:
            raise StoreError(f"shard {step} is cut; encode it again")
        return super().batch_at(step)

    def wait_for(self, place: int) -> bool:
        with self.has_read:
            return self.has_read.wait_for(lambda: place in self.places, timeout=10.0)


def is_reading() -> bool:
    return any(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.fixture
def _reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(loop_module, "reads_ahead", lambda device: True)


def test_a_cpu_reads_a_batch_when_it_takes_it(tmp_path: Path) -> None:
    feed, read = ReadFeed(), list[list[int]]()
    listener = Listener(3, lambda: read.append([*feed.places]))
    run_quietly(tiny_recipe(), tmp_path / "run", feed, hooks=[listener], until=7)
    assert read == [[0, 1, 2]]


@pytest.mark.usefixtures("_reading_ahead")
def test_the_next_batch_is_read_while_a_step_is_made(tmp_path: Path) -> None:
    feed, was_read = ReadFeed(), list[bool]()
    # Place 3 is the batch of step 4.
    listener = Listener(3, lambda: was_read.append(feed.wait_for(3)))
    run_quietly(tiny_recipe(), tmp_path / "run", feed, hooks=[listener], until=7)
    assert was_read == [True]
    assert feed.places == list(range(7))  # and none that no step of this call takes
    assert not is_reading()


@pytest.mark.usefixtures("_reading_ahead")
def test_a_batch_that_cannot_be_read_stops_the_run_at_its_step(tmp_path: Path) -> None:
    run, listener = tmp_path / "run", Listener()
    with pytest.raises(StoreError, match="shard 7 is cut; encode it again"):
        run_quietly(tiny_recipe(), run, ReadFeed(broken=7), hooks=[listener])
    assert sum(isinstance(event, StepDone) for event in listener.events) == 7
    assert not is_reading()
    run_quietly(tiny_recipe(), run)
    run_quietly(tiny_recipe(), tmp_path / "whole")
    assert_same(weights(run, 12), weights(tmp_path / "whole", 12))


@pytest.mark.usefixtures("_reading_ahead")
def test_a_stopped_run_leaves_no_thread(tmp_path: Path) -> None:
    stopper = Listener(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (
        run_quietly(tiny_recipe(), tmp_path / "run", ReadFeed(broken=4), hooks=[stopper]).step == 4
    )
    assert not is_reading()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Validation, logs and checkpoints draw no numbers that training would miss."""
    busy = tiny_recipe(max_steps=6, validate_every=1, log_every=1, checkpoint_every=1)
    quiet = tiny_recipe(max_steps=6, validate_every=0, checkpoint_every=0)
    listener = Listener()
    run_quietly(busy, tmp_path / "busy", hooks=[listener])
    run_quietly(quiet, tmp_path / "quiet")
    assert sum(isinstance(event, Validated) for event in listener.events) == 6
    assert_same(weights(tmp_path / "busy", 6), weights(tmp_path / "quiet", 6))
