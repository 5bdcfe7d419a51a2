"""The whole walk in one call: draw a world, encode it, train on it, sample, score, report.

`rectiflow demo` runs this. Each stage leaves its result in OUT, and a second call goes on after the
last one that is complete: an interrupted demo is continued, a finished one only writes its page.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rectiflow.base.config import load_config, save_config
from rectiflow.base.errors import UserError
from rectiflow.base.files import explain_os_error
from rectiflow.evaluation.charts import format_seconds
from rectiflow.evaluation.report import write_report
from rectiflow.evaluation.results import format_table, read_evaluation, write_evaluation
from rectiflow.evaluation.shapeworld import evaluate
from rectiflow.generation.model import load_model
from rectiflow.generation.pictures import encode_png
from rectiflow.recipes.demo_page import assemble_report, moment_folder
from rectiflow.recipes.encoding import encode_with_parts
from rectiflow.recipes.progress import Counter
from rectiflow.recipes.small import demo as demo_recipe
from rectiflow.recipes.training import train_on_store
from rectiflow.shapeworld.folder import write_folder
from rectiflow.shapeworld.world import SMALL
from rectiflow.training.calibration import calibrate
from rectiflow.training.hooks import Event, Hook, Sampled
from rectiflow.training.loop import TrainResult
from rectiflow.training.recipe import TrainRecipe

RECORD_FILE = "demo.json"
#: Looks at the model on the way, evenly spread over the training.
NUM_MOMENTS = 8
PICTURES_PER_MINUTE = 2500
NUM_PICTURES = (1024, 50_000)
PER_TASK = 50
#: Of the first plan's steps, made from a few seconds, the share after which its pace is known.
PACED_AFTER = 0.3
#: The share of the budget that is planned; the rest is for a processor that slows down.
PLANNED_SHARE = 0.95
CALIBRATION_S = 10.0


@dataclass(kw_only=True)
class DemoRecord:
    """`demo.json`: what was asked for, what was planned, how long each stage took so far.

    With `is_paced` the number of steps follows from the training's own pace, no more from a guess.
    """

    minutes: float
    seed: int
    num_pictures: int
    max_steps: int | None = None
    is_paced: bool = False
    stages: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)


def run_demo(
    out: Path | str, *, minutes: float = 10.0, seed: int = 0, per_task: int = PER_TASK
) -> Path:
    """Walk from nothing to a scored model in `out`; returns the place of its report.

    `minutes` is the training budget. Interrupted, the same call goes on where it was.

    Raises:
        UserError: `out` holds something else or another demo, a stage failed on something that can
            be put right, or the disk is full.
        KeyboardInterrupt: training was asked to stop; it has saved its state.
    """
    walk = _Walk(Path(out), minutes=minutes, seed=seed)
    print(f"rectiflow demo: {minutes:g} minutes of training, results in {walk.out}", flush=True)
    with walk.stage("Draw the world", f"{walk.record.num_pictures:,} pictures with captions"):
        walk.draw_world()
    with walk.stage("Encode", "pictures to latents, captions to text states"):
        walk.encode()
    with walk.stage("Calibrate", f"how many steps are {minutes:g} minutes here?"):
        walk.calibrate()
    with walk.stage("Train", "a backbone by flow matching"):
        walk.train()
    with walk.stage("Sample and score", "the benchmark's prompts, read back from the pixels"):
        walk.evaluate(per_task)
    print(format_table(read_evaluation(walk.evaluation_file)), flush=True)
    report = walk.out / "report.html"
    write_report(report, assemble_report(walk.out, dict(walk.record.stages), walk.describe()))
    print(
        f"\n{format_seconds(sum(walk.record.stages.values()))} in all. The report, with pictures "
        f"and curves:\n{report.resolve()}",
        flush=True,
    )
    return report


class _Walk:
    """The demo's folder and the stages that fill it."""

    def __init__(self, out: Path, *, minutes: float, seed: int) -> None:
        self.out = out
        self._started = time.perf_counter()
        self._number = 0
        self.record = _open_record(out, minutes=minutes, seed=seed)
        self.pictures, self.store, self.run = out / "pictures", out / "store", out / "run"
        self.evaluation_file = out / "evaluation.json"

    @contextmanager
    def stage(self, name: str, about: str) -> Generator[None]:
        """Announce a stage, time it, and note in the record when it is complete."""
        self._number += 1
        elapsed = format_seconds(time.perf_counter() - self._started)
        was = ", done before" if name in self.record.done else ""
        print(f"\n[{self._number}/5] {name}: {about}{was}  ({elapsed} so far)", flush=True)
        started = time.perf_counter()
        try:
            yield
            if name not in self.record.done:
                self.record.done.append(name)
        finally:
            if not was:
                spent = self.record.stages.get(name, 0.0) + time.perf_counter() - started
                self.record.stages[name] = round(spent, 2)
                self.save()

    def save(self) -> None:
        save_config(self.out / RECORD_FILE, self.record)

    def is_done(self, name: str) -> bool:
        return name in self.record.done

    def draw_world(self) -> None:
        if self.is_done("Draw the world") or self.pictures.exists():
            return  # the folder appears whole or not at all
        with Counter("pictures") as progress:
            write_folder(
                SMALL,
                self.pictures,
                count=self.record.num_pictures,
                split="train",
                seed=self.record.seed,
                num_workers=min(os.cpu_count() or 1, 8),
                progress=progress,
            )

    def encode(self) -> None:
        if self.is_done("Encode"):
            return
        with Counter("pictures and captions") as progress:
            report = encode_with_parts(self.pictures, self.store, progress=progress)
        print(report, flush=True)

    def calibrate(self) -> None:
        if self.record.max_steps is not None:
            return
        recipe = replace(demo_recipe(), seed=self.record.seed)
        rate = calibrate(recipe, self.store, seconds=min(CALIBRATION_S, 0.1 * self.budget_s))
        self.record.max_steps = max(NUM_MOMENTS, int(rate * self.budget_s))
        print(
            f"{rate:.2f} steps/s, {rate * recipe.batch_size:.0f} images/s: about "
            f"{self.record.max_steps:,} steps; planned again when the pace is known",
            flush=True,
        )

    @property
    def budget_s(self) -> float:
        """Seconds of training that are planned."""
        return 60.0 * self.record.minutes * PLANNED_SHARE

    def recipe(self) -> TrainRecipe:
        """The registered recipe with the planned number of steps and looks on the way."""
        max_steps = self.record.max_steps or NUM_MOMENTS
        recipe, moment = demo_recipe(), max(1, max_steps // NUM_MOMENTS)
        return replace(
            recipe,
            seed=self.record.seed,
            max_steps=max_steps,
            log_every=min(recipe.log_every, moment),
            validate_every=min(recipe.validate_every, moment),
            sample_every=moment,
        )

    def train(self) -> None:
        if self.is_done("Train"):
            return
        if not self.record.is_paced:
            recipe = self.recipe()
            self.pace(self.go_on(recipe, until=math.ceil(PACED_AFTER * recipe.max_steps)), recipe)
        self.go_on(self.recipe())

    def go_on(self, recipe: TrainRecipe, *, until: int | None = None) -> TrainResult:
        """Train from where the run is to its end, or `until` a step."""
        result = train_on_store(
            recipe,
            self.store,
            self.run,
            max_steps=recipe.max_steps,
            until=until,
            hooks=[_KeepMoments(self.out)],
        )
        # In its last step training has nothing left to stop; the walk has.
        if result.signal is not None:
            print(f"stopped at step {result.step:,}; the same command goes on there", flush=True)
            if result.signal == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + result.signal)
        return result

    def pace(self, result: TrainResult, recipe: TrainRecipe) -> None:
        """Plan the steps by what the first ones took, with all looks and checkpoints between."""
        steps_per_s = result.step / result.elapsed_s
        # The rate of learning has not begun to fall yet, in the new plan neither.
        least = math.ceil(result.step / (1.0 - recipe.schedule.decay_fraction))
        self.record.max_steps = max(least, int(steps_per_s * self.budget_s))
        self.record.is_paced = True
        self.save()
        print(
            f"{steps_per_s:.2f} steps/s with all that comes between: "
            f"{self.record.max_steps:,} steps",
            flush=True,
        )

    def evaluate(self, per_task: int) -> None:
        if self.is_done("Sample and score"):
            return
        with Counter("pictures") as progress:
            evaluation = evaluate(
                load_model(self.run),
                per_task=per_task,
                keep_in=self.out / "evaluation",
                progress=progress,
            )
        write_evaluation(self.evaluation_file, evaluation)

    def describe(self) -> Callable[[str], str]:
        """A few words on what each stage left, for the page."""
        notes = {
            "Draw the world": f"{self.record.num_pictures:,} pictures with captions",
            "Encode": "to latents and text states, once for all epochs",
            "Calibrate": f"{self.record.max_steps or 0:,} steps fit into the budget",
            "Train": "with held-out losses, checkpoints and sample pictures",
            "Sample and score": "prompts of every task, of seen and of unseen combinations",
        }
        return lambda stage: notes.get(stage, "")


class _KeepMoments(Hook):
    """Each sample picture as a file of its own, for the page."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def handle(self, event: Event) -> None:
        if isinstance(event, Sampled):
            folder = moment_folder(self._out, event.step)
            folder.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(event.images):
                (folder / f"{i:02d}.png").write_bytes(encode_png(image))


def _open_record(out: Path, *, minutes: float, seed: int) -> DemoRecord:
    """The record of a demo to continue, or a new one in a new folder."""
    path = out / RECORD_FILE
    low, high = NUM_PICTURES
    fresh = DemoRecord(
        minutes=float(minutes),
        seed=seed,
        num_pictures=min(high, max(low, round(PICTURES_PER_MINUTE * minutes))),
    )
    if path.exists():
        saved = load_config(path, DemoRecord)
        if (saved.minutes, saved.seed) != (fresh.minutes, fresh.seed):
            raise UserError(
                f"{out} holds a demo of {saved.minutes:g} minutes with seed {saved.seed}; give "
                "the same --minutes and --seed to continue it, or another --out"
            )
        return saved
    try:
        out.mkdir(parents=True, exist_ok=True)
        used = any(out.iterdir())
    except OSError as error:
        raise explain_os_error(error, out, "write the demo to") from error
    if used:
        raise UserError(f"{out} is not empty and holds no demo; choose a new folder with --out")
    save_config(path, fresh)
    return fresh
