"""The training loop: recipe + store -> a run folder with checkpoints, logs and a model.

On the walk of a sample: `data.loader` -> here -> `step`. Killing the process at any moment and
calling `train` again ends as never having been killed, on a CPU with the same bytes. Several
processes (`distributed.world`) go through the loop in step, each with its share of every batch; the
first one writes and speaks.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rectiflow.base.config import save_config
from rectiflow.base.errors import DivergedError, UserError
from rectiflow.base.files import read_json, write_json
from rectiflow.data.loader import Prefetcher
from rectiflow.data.records import Batch
from rectiflow.distributed.world import ALONE, World
from rectiflow.flow.emphasis import emphasis_of
from rectiflow.training.checkpoint import (
    clear_unfinished,
    load_latest,
    remove_old,
    return_to_latest,
    samples_of,
)
from rectiflow.training.diagnosis import Diagnose
from rectiflow.training.environment import describe_environment
from rectiflow.training.export_fine_tuned import refuse_missing_parts
from rectiflow.training.failure import failure_of, save_failure
from rectiflow.training.feed import Feed, open_feed
from rectiflow.training.hooks import (
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
from rectiflow.training.post_hoc import drop_averages, keep_averages
from rectiflow.training.recipe import TrainRecipe, refuse_uneven
from rectiflow.training.run_folder import locked, refuse_foreign_folder, settle_recipe
from rectiflow.training.saver import Saver
from rectiflow.training.spikes import Spike, read_spikes, record_spike
from rectiflow.training.start_from import FirstWeights, read_first_weights, read_same_weights
from rectiflow.training.state import TrainState
from rectiflow.training.step import StepResult, train_step
from rectiflow.training.stopping import StopRequest, stop_request
from rectiflow.training.validation import ValidationLoss, validate


def reads_ahead(device: torch.device) -> bool:
    """Whether the next batch is read while a step is made.

    Not where the processor that reads is the one that computes: its threads wait for each other,
    and steps take a third longer to save a fiftieth.
    """
    return device.type != "cpu"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended.

    `signal` is the number of the signal that asked it to stop, None if none did; `interrupted` is
    None after the last step too, when there was nothing left to stop.
    """

    run: Path
    model: Path
    step: int
    max_steps: int
    elapsed_s: float
    signal: int | None
    interrupted: int | None
    validation: Validated | None


def train(
    recipe: TrainRecipe,
    store: Path | str | Feed,
    out: Path | str,
    *,
    max_steps: int | None = None,
    until: int | None = None,
    hooks: Sequence[Hook] = (),
    on_sample: DrawSamples | None = None,
    progress: bool = True,
    world: World = ALONE,
) -> TrainResult:
    """Train `recipe` on a latent store until `max_steps`, continuing the run in `out` if any.

    Without `max_steps` a new run takes the recipe's and a continued run its own. With `until` this
    call saves and returns at that step, on the way to `max_steps`. SIGTERM and Ctrl-C finish the
    step, save a checkpoint and return. `on_sample` turns the EMA model and the recipe's prompts
    into pictures; `progress` shows a progress line on stderr. Every process of `world` calls it
    alike; hooks and pictures are the first one's alone.

    Raises:
        UserError: `out` is not a run or is in use; the disk is full; the model of `start_from`
            does not exist.
        ConfigError: the batch does not divide among the processes, or a process's share of it into
            micro-batches.
        DivergedError: the loss or the gradient is not finite.
        CheckpointError: the run follows another recipe or store, or its checkpoints are damaged;
            the model of `start_from` is damaged or of other shapes.
        StoreError: the store is damaged.
    """
    run = Path(out)
    if world.is_first:
        refuse_foreign_folder(run)
    refuse_uneven(recipe, world.num_processes)
    feed = store if isinstance(store, Feed) else open_feed(store, recipe)
    share = feed.shard(world.rank, world.num_processes)
    with ExitStack() as stack:
        if world.is_first:
            stack.enter_context(locked(run))
            clear_unfinished(run)
            refuse_missing_parts(run, recipe)
        given = recipe
        recipe = world.from_first(lambda: settle_recipe(run, given, max_steps))
        fingerprint = feed.facts.fingerprint
        state = load_latest(run, recipe, fingerprint, world) or _first_state(recipe, world)
        # A decision may be younger than the checkpoint that the last session went back to.
        for decision in world.from_first(lambda: read_spikes(run)):
            state.spikes.skip(decision["skipped"])
        if state.step > recipe.max_steps:
            raise UserError(
                f"{run} has already made {state.step} steps, more than max_steps "
                f"{recipe.max_steps}; give a larger number or choose another run folder"
            )
        world.wait_for_all()
        watchers: list[Hook] = []
        if world.is_first:
            # Only now: what cannot start should not bind the folder to its recipe.
            save_config(run / "recipe.json", recipe)
            # The last session may have been killed before it could do so.
            remove_old(run, state.step, recipe.keep_last)
            drop_averages(run, after_step=state.step)
            _append_session(run, state.step, world.num_processes)
            watchers = [
                MetricsFile(run / "metrics.jsonl", after_step=state.step),
                TensorBoard(run / "tensorboard", after_step=state.step),
                SamplePictures(samples_of(run), after_step=state.step),
                *hooks,
                *([Progress(sys.stderr)] if progress else []),
            ]
        for watcher in watchers:
            stack.callback(watcher.close)
        batches = Prefetcher(share)
        stack.callback(batches.close)
        token = world.from_first(lambda: secrets.token_hex(8))
        saver = stack.enter_context(Saver(run, recipe, feed.facts, token))
        stop = stack.enter_context(stop_request(is_patient=world.num_processes > 1))
        return _Loop(
            run=run,
            recipe=recipe,
            feed=feed,
            batches=batches,
            state=state,
            watchers=watchers,
            on_sample=on_sample,
            saver=saver,
            stop=stop,
            last_step=recipe.max_steps if until is None else min(until, recipe.max_steps),
        ).run_to_end()


def _first_state(recipe: TrainRecipe, world: World) -> TrainState:
    if recipe.start_from is None:
        return TrainState.start(recipe, world=world)
    return TrainState.start(recipe, read_first_weights(recipe.start_from), world)


def _same_first_weights(
    recipe: TrainRecipe, origin: Mapping[str, Any] | None
) -> FirstWeights | None:
    if recipe.start_from is None or origin is None:
        return None
    return read_same_weights(recipe.start_from, origin)


@dataclass(kw_only=True)
class _Loop:
    """One session of a run; the state outlives it in checkpoints."""

    run: Path
    recipe: TrainRecipe
    feed: Feed
    batches: Prefetcher
    state: TrainState
    watchers: Iterable[Hook]
    on_sample: DrawSamples | None
    saver: Saver
    stop: StopRequest
    last_step: int
    validation: Validated | None = None
    clock: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        world = self.state.world
        self.meter = Meter(self.recipe, world.device, num_processes=world.num_processes)

    def run_to_end(self) -> TrainResult:
        state, recipe = self.state, self.recipe
        emphasis = emphasis_of(recipe.formulation, recipe.shift)
        if state.world.is_first:
            save_config(self.run / "emphasis.json", emphasis)
        self.tell(Started(step=state.step, max_steps=recipe.max_steps, emphasis=emphasis))
        first_step = state.step
        saved_step = state.step or None
        if state.step and not (self.run / "model").exists():
            self.export()  # the last session was killed while it replaced the model
        while state.step < self.last_step and not self.is_asked_to_stop():
            if not self.advance():
                continue
            self.tell_saved(wait=False)
            if self.is_due(recipe.checkpoint_every):
                self.save()
                saved_step = state.step
        if saved_step != state.step:
            self.save()
        elif state.step == first_step:  # it may have been killed between checkpoint and export
            self.export()
        self.tell_saved(wait=True)
        return TrainResult(
            run=self.run,
            model=self.run / "model",
            step=state.step,
            max_steps=recipe.max_steps,
            elapsed_s=state.elapsed_s,
            signal=self.stop.signal,
            interrupted=None if state.step >= self.last_step else self.stop.signal,
            validation=self.validation,
        )

    def is_asked_to_stop(self) -> bool:
        """Whether a signal came to any process; all get the same answer."""
        number = int(self.state.world.gather(self.stop.signal or 0).max())
        if number:
            self.stop.signal = number
        return bool(number)

    def advance(self) -> bool:
        """One step, then the looks that are due after it; False if it was taken back."""
        memory, step = self.state.spikes, self.state.step + 1
        with self.meter.spending("data"):
            is_ahead = reads_ahead(self.state.world.device) and step < self.last_step
            then = memory.place_of(step) if is_ahead else None
            rows = self.batches.batch_at(memory.place_of(step - 1), then=then)
        with self.meter.spending("step"):
            result = self.step(rows)
        guard = self.recipe.spikes
        spike = guard.judge(memory, result.loss, result.gradient_norm)
        if spike is not None and self.num_spikes() < guard.limit:
            self.roll_back(spike, step)
            return False
        if spike is not None and result.is_finite:
            self.settle()
            raise DivergedError(
                f"training stopped at step {step}: {spike}, and the run has gone back "
                f"{guard.limit} times already (spikes.limit). Try a lower learning rate or a "
                "longer warm-up in a new run folder"
            )
        if not result.is_finite:
            self.fail(result)
        self.meter.count(rows)
        self.tell(
            StepDone(step=self.state.step, loss=result.loss, num_images=self.recipe.batch_size)
        )
        self.count_time()
        if self.is_due(self.recipe.ema.snapshot_every):
            self.keep_averages()
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
        with Diagnose(self.state.backbone, self.state.world) as diagnose:
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
                similarity=result.similarity,
            )
        )
        state.loss_window = []

    def validate(self) -> None:
        def losses_of(model: nn.Module) -> ValidationLoss:
            return validate(model, self.feed.validation, self.recipe, self.state.world)

        with self.meter.spending("validation"):
            raw, ema = losses_of(self.state.backbone), losses_of(self.state.ema.model)
            power_emas = {
                str(sigma_rel): losses_of(average.model)
                for sigma_rel, average in self.state.power_emas.items()
            }
        self.count_time()
        self.validation = Validated(
            step=self.state.step,
            raw=raw,
            ema=ema,
            power_emas=power_emas,
            elapsed_s=round(self.state.elapsed_s, 2),
        )
        self.tell(self.validation)

    def sample(self) -> None:
        prompts = self.recipe.sample_prompts
        if self.on_sample is None or not prompts:
            return
        with self.meter.spending("sampling"):
            model = self.state.averaged_backbone()
            if model is None:
                return
            images = self.on_sample(model, prompts)
        self.tell(Sampled(step=self.state.step, prompts=prompts, images=images))

    def keep_averages(self) -> None:
        """At once, so that a checkpoint is never without those of the steps before it."""
        with self.meter.spending("saving"):
            averages = self.state.power_averages()
            if averages is not None:
                keep_averages(self.run, self.state.step, self.state.elapsed_s, averages)
            # What the others do next may have less patience than a slow disk needs.
            self.state.world.wait_for_all()
        self.count_time()

    def save(self) -> None:
        self.count_time()
        with self.meter.spending("saving"):
            self.tell_saved(wait=True)  # at most one snapshot lies in memory
            snapshot = self.state.snapshot()
            if snapshot is not None:
                self.saver.save(snapshot)
        self.tell_saved(wait=False)

    def export(self) -> None:
        if self.state.world.is_first:
            self.saver.export(self.state.step)

    def tell_saved(self, *, wait: bool) -> None:
        saved = self.saver.finished(wait=wait)
        if saved is not None:
            self.tell(saved)

    def num_spikes(self) -> int:
        """How often the run has gone back; the same in every process."""
        return self.state.world.from_first(lambda: len(read_spikes(self.run)))

    def roll_back(self, spike: Spike, step: int) -> None:
        """Go back to the last checkpoint, or the start, and leave out what led to the spike."""
        self.tell_saved(wait=True)
        state, recipe = self.state, self.recipe
        place, left_out = state.spikes.place_of(step - 1), state.spikes.skipped
        if not return_to_latest(state, self.run, recipe, self.feed.facts.fingerprint):
            state.start_over(recipe, _same_first_weights(recipe, state.origin))
        if self.validation is not None and self.validation.step > state.step:
            self.validation = None
        # What was left out before stays left out, also where this checkpoint is older than that.
        state.spikes.skip(left_out)
        skipped = recipe.spikes.places_to_skip(place, from_place=state.spikes.place_of(state.step))
        if state.world.is_first:
            record_spike(self.run, spike, step=step, back_to=state.step, skipped=skipped)
            drop_averages(self.run, after_step=state.step)
        state.spikes.skip(skipped)
        self.tell(RolledBack(step=step, back_to=state.step, spike=spike, skipped=tuple(skipped)))

    def settle(self) -> None:
        """Before an error that all processes raise: one that leaves early ends the first at once.

        It may still be writing.
        """
        self.tell_saved(wait=True)
        self.state.world.wait_for_all()

    def fail(self, result: StepResult) -> None:
        self.tell_saved(wait=True)
        step = self.state.step + 1
        batch = self.feed.batch_at(self.state.spikes.place_of(self.state.step))
        snapshot, path = self.state.snapshot(), failure_of(self.run, step)
        problem = (
            f"training stopped at step {step}: the loss is {result.loss} and the gradient's norm "
            f"{result.gradient_norm}"
        )
        advice = (
            "Try a lower learning rate or a longer warm-up in a new run folder, and check the data "
            "for broken latents"
        )
        if snapshot is not None:
            facts, token = self.feed.facts, self.saver.token
            try:
                save_failure(path, snapshot, batch, self.recipe, facts.fingerprint, token)
            except UserError as error:
                # At once: another process may be waiting for the part that does not come.
                raise DivergedError(
                    f"{problem}. The batch and the state that reproduce it could not be kept: "
                    f"{error}. {advice}"
                ) from error
        self.settle()
        raise DivergedError(
            f"{problem}. The batch and the state that reproduce it are in {path}. {advice}"
        )


def _append_session(run: Path, step: int, num_processes: int) -> None:
    """Add this session to `environment.json`, which lists every one of the run."""
    path = run / "environment.json"
    earlier = read_json(path)["sessions"] if path.exists() else []
    session = {
        "from_step": step,
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "num_processes": num_processes,
    }
    write_json(path, {"sessions": [*earlier, session | describe_environment()]})
