"""The training loop: recipe + store -> a run folder with checkpoints, logs and a model.

On the walk of a sample: `data.loader` -> here -> `step`. Killing the process at any moment and
calling `train` again ends with the same bytes as never having been killed.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from rectiflow.base.config import save_config
from rectiflow.base.errors import DivergedError, UserError
from rectiflow.base.files import read_json, write_json
from rectiflow.data.records import Batch
from rectiflow.flow.emphasis import emphasis_of
from rectiflow.training.checkpoint import clear_unfinished, load_latest, remove_old, save_checkpoint
from rectiflow.training.diagnosis import Diagnose
from rectiflow.training.environment import describe_environment
from rectiflow.training.export import export_model
from rectiflow.training.failure import save_failure
from rectiflow.training.feed import Feed, open_feed
from rectiflow.training.hooks import (
    CheckpointSaved,
    Diagnosed,
    DrawSamples,
    Event,
    Hook,
    MetricsFile,
    Progress,
    RolledBack,
    Sampled,
    SamplePictures,
    Started,
    StepDone,
    TensorBoard,
    TrainLogged,
    Validated,
)
from rectiflow.training.meter import Meter
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.run_folder import locked, refuse_foreign_folder, settle_recipe
from rectiflow.training.spikes import Spike, read_spikes, record_spike
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.state import TrainState
from rectiflow.training.step import StepResult, train_step
from rectiflow.training.validation import validate


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended.

    `interrupted` is the number of the signal that asked it to stop, None after the last step.
    """

    run: Path
    model: Path
    step: int
    max_steps: int
    elapsed_s: float
    interrupted: int | None
    validation: Validated | None


def train(
    recipe: TrainRecipe,
    store: Path | str | Feed,
    out: Path | str,
    *,
    max_steps: int | None = None,
    hooks: Sequence[Hook] = (),
    on_sample: DrawSamples | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train `recipe` on a latent store until `max_steps`, continuing the run in `out` if any.

    Without `max_steps` a new run takes the recipe's and a continued run its own. SIGTERM and
    Ctrl-C finish the step, save a checkpoint and return. `on_sample` turns the EMA model and the
    recipe's prompts into pictures; `progress` shows a progress line on stderr.

    Raises:
        UserError: `out` is not a run or is in use; the disk is full; the model of `start_from`
            does not exist.
        DivergedError: the loss or the gradient is not finite.
        CheckpointError: the run follows another recipe or store, or its checkpoints are damaged;
            the model of `start_from` is damaged or of other shapes.
        StoreError: the store is damaged.
    """
    run = Path(out)
    refuse_foreign_folder(run)
    feed = store if isinstance(store, Feed) else open_feed(store, recipe)
    with ExitStack() as stack:
        stack.enter_context(locked(run))
        recipe = settle_recipe(run, recipe, max_steps)
        clear_unfinished(run)
        state = load_latest(run, recipe, feed.facts.fingerprint) or _first_state(recipe)
        # A decision may be younger than the checkpoint that the last session went back to.
        for decision in read_spikes(run):
            state.spikes.skip(decision["skipped"])
        if state.step > recipe.max_steps:
            raise UserError(
                f"{run} has already made {state.step} steps, more than max_steps "
                f"{recipe.max_steps}; give a larger number or choose another run folder"
            )
        # Only now: what cannot start should not bind the folder to its recipe.
        save_config(run / "recipe.json", recipe)
        # The last session may have been killed before it could do so.
        remove_old(run, state.step, recipe.keep_last)
        _append_session(run, state.step)
        watchers = [
            MetricsFile(run / "metrics.jsonl", after_step=state.step),
            TensorBoard(run / "tensorboard", after_step=state.step),
            SamplePictures(run / "samples"),
            *hooks,
            *([Progress(sys.stderr)] if progress else []),
        ]
        for watcher in watchers:
            stack.callback(watcher.close)
        stop = stack.enter_context(_stop_request())
        return _Loop(
            run=run,
            recipe=recipe,
            feed=feed,
            state=state,
            watchers=watchers,
            on_sample=on_sample,
            stop=stop,
        ).run_to_end()


def _first_state(recipe: TrainRecipe) -> TrainState:
    if recipe.start_from is None:
        return TrainState.start(recipe)
    dtype = torch.float32 if recipe.lora is None else recipe.lora.base_dtype
    return TrainState.start(recipe, read_first_weights(recipe.start_from, dtype=dtype))


@dataclass(kw_only=True)
class _Loop:
    """One session of a run; the state outlives it in checkpoints."""

    run: Path
    recipe: TrainRecipe
    feed: Feed
    state: TrainState
    watchers: Iterable[Hook]
    on_sample: DrawSamples | None
    stop: _StopRequest
    validation: Validated | None = None
    clock: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.meter = Meter(self.recipe)

    def run_to_end(self) -> TrainResult:
        state, recipe = self.state, self.recipe
        emphasis = emphasis_of(recipe.formulation, recipe.shift)
        save_config(self.run / "emphasis.json", emphasis)
        self.tell(Started(step=state.step, max_steps=recipe.max_steps, emphasis=emphasis))
        # A continued run starts from its checkpoint, but may have been killed before the export.
        saved_step = state.step or None
        while state.step < recipe.max_steps and self.stop.signal is None:
            if not self.advance():
                continue
            if self.is_due(recipe.checkpoint_every):
                self.save()
                saved_step = state.step
        if saved_step != state.step:
            self.save()
        else:
            export_model(self.run, state, recipe, self.feed.facts)
        return TrainResult(
            run=self.run,
            model=self.run / "model",
            step=state.step,
            max_steps=recipe.max_steps,
            elapsed_s=state.elapsed_s,
            interrupted=None if state.step == recipe.max_steps else self.stop.signal,
            validation=self.validation,
        )

    def advance(self) -> bool:
        """One step, then the looks that are due after it; False if it was taken back."""
        with self.meter.spending("data"):
            batch = self.feed.batch_at(self.state.spikes.place_of(self.state.step))
        step = self.state.step + 1
        with self.meter.spending("step"):
            result = self.step(batch)
        guard, memory = self.recipe.spikes, self.state.spikes
        spike = guard.judge(memory, result.loss, result.gradient_norm)
        if spike is not None and len(read_spikes(self.run)) < guard.limit:
            self.roll_back(spike, step)
            return False
        if spike is not None and result.is_finite:
            raise DivergedError(
                f"training stopped at step {step}: {spike}, and the run has gone back "
                f"{guard.limit} times already (spikes.limit). Try a lower learning rate or a "
                "longer warm-up in a new run folder"
            )
        if not result.is_finite:
            self.fail(batch, result)
        self.meter.count(batch)
        self.tell(
            StepDone(step=self.state.step, loss=result.loss, num_images=self.recipe.batch_size)
        )
        self.count_time()
        if self.is_due(self.recipe.log_every):
            self.log(result)
        if self.is_due(self.recipe.validate_every) and self.feed.validation:
            self.validate()
        if self.is_due(self.recipe.sample_every):
            self.sample()
        return True

    def step(self, batch: Batch) -> StepResult:
        """One training step, diagnosed where that is due."""
        every, number = self.recipe.diagnose_every, self.state.step + 1
        if every == 0 or (number % every and number != self.recipe.max_steps):
            return train_step(self.state, batch, self.recipe)
        with Diagnose(self.state.backbone) as diagnose:
            result = train_step(
                self.state, batch, self.recipe, before_update=diagnose.before_update
            )
        if result.is_finite:
            self.tell(Diagnosed(step=number, diagnosis=diagnose.read()))
        return result

    def is_due(self, every: int) -> bool:
        """Whether something done every `every` steps, and after the last one, is to be done."""
        step = self.state.step
        return every > 0 and (step % every == 0 or step == self.recipe.max_steps)

    def tell(self, event: Event) -> None:
        for watcher in self.watchers:
            watcher.handle(event)

    def count_time(self) -> None:
        now = time.perf_counter()
        self.state.elapsed_s += now - self.clock
        self.clock = now

    def log(self, result: StepResult) -> None:
        state, recipe = self.state, self.recipe
        factor = recipe.schedule.factor(state.step - 1, recipe.max_steps)
        losses = state.loss_window
        self.tell(
            TrainLogged(
                step=state.step,
                loss=sum(losses) / len(losses),
                gradient_norm=result.gradient_norm,
                learning_rate=recipe.optimizer.learning_rate * factor,
                images_per_second=self.meter.images_per_second,
                elapsed_s=round(state.elapsed_s, 2),
                usage=self.meter.read(),
            )
        )
        state.loss_window = []

    def validate(self) -> None:
        batches = self.feed.validation
        with self.meter.spending("validation"):
            raw = validate(self.state.backbone, batches, self.recipe)
            ema = validate(self.state.ema.model, batches, self.recipe)
        self.count_time()
        self.validation = Validated(
            step=self.state.step, raw=raw, ema=ema, elapsed_s=round(self.state.elapsed_s, 2)
        )
        self.tell(self.validation)

    def sample(self) -> None:
        prompts = self.recipe.sample_prompts
        if self.on_sample is None or not prompts:
            return
        with self.meter.spending("sampling"):
            images = self.on_sample(self.state.ema.model, prompts)
        self.tell(Sampled(step=self.state.step, prompts=prompts, images=images))

    def save(self) -> None:
        self.count_time()
        facts = self.feed.facts
        with self.meter.spending("saving"):
            path = save_checkpoint(self.run, self.state, self.recipe, facts.fingerprint)
            export_model(self.run, self.state, self.recipe, facts)
        self.tell(CheckpointSaved(step=self.state.step, path=path))

    def roll_back(self, spike: Spike, step: int) -> None:
        """Go back to the last checkpoint, or the start, and leave out what led to the spike."""
        fingerprint = self.feed.facts.fingerprint
        place = self.state.spikes.place_of(step - 1)
        earlier = load_latest(self.run, self.recipe, fingerprint) or _first_state(self.recipe)
        # What was left out before stays left out, also where this checkpoint is older than that.
        earlier.spikes.skip(self.state.spikes.skipped)
        skipped = self.recipe.spikes.places_to_skip(
            place, from_place=earlier.spikes.place_of(earlier.step)
        )
        record_spike(self.run, spike, step=step, back_to=earlier.step, skipped=skipped)
        earlier.spikes.skip(skipped)
        self.state.become(earlier)
        self.tell(RolledBack(step=step, back_to=earlier.step, spike=spike, skipped=tuple(skipped)))

    def fail(self, batch: Batch, result: StepResult) -> None:
        step = self.state.step + 1
        path = save_failure(self.run, self.state, batch, self.recipe, self.feed.facts.fingerprint)
        raise DivergedError(
            f"training stopped at step {step}: the loss is {result.loss} and the gradient's norm "
            f"{result.gradient_norm}. The batch and the state that reproduce it are in {path}. "
            "Try a lower learning rate or a longer warm-up in a new run folder, and check the "
            "data for broken latents"
        )


@dataclass(kw_only=True)
class _StopRequest:
    """The number of the signal that asked the run to stop, None as long as none did."""

    signal: int | None = None


@contextmanager
def _stop_request() -> Generator[_StopRequest]:
    """Note the first SIGINT or SIGTERM; a second one acts as if nothing had caught it."""
    request = _StopRequest()
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        restore()

    # Python delivers signals to the main thread, and lets no other one set handlers.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


def _append_session(run: Path, step: int) -> None:
    """Add this process to `environment.json`, which lists every session of the run."""
    path = run / "environment.json"
    earlier = read_json(path)["sessions"] if path.exists() else []
    session = {"from_step": step, "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(path, {"sessions": [*earlier, session | describe_environment()]})
