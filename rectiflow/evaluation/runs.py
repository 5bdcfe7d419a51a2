"""Training runs as their folders tell of them: where each stands, how they differ, how they did.

`rectiflow runs` prints what this module reads. It only reads; a run that is going on is not
disturbed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rectiflow.base.config import load_config, to_json
from rectiflow.base.errors import UserError
from rectiflow.base.files import explain_os_error
from rectiflow.base.log import read_events
from rectiflow.evaluation.charts import format_seconds
from rectiflow.evaluation.results import text_table
from rectiflow.training.checkpoint import newest_step
from rectiflow.training.export import read_description
from rectiflow.training.meter import pace
from rectiflow.training.recipe import TrainRecipe, differing_settings
from rectiflow.training.run_folder import is_in_use

#: How far below a folder its runs are looked for: a study keeps them at `cells/NAME/run`.
MAX_DEPTH = 4
_NEVER_SEARCHED = ("checkpoints", "tensorboard", "samples", "model", "wandb")
_FINAL_COLUMNS = (
    *("run", "state", "step", "train loss", "held-out raw", "held-out EMA"),
    *("images/s", "FLOP/s", "memory", "spikes", "trained for"),
)
RunState = Literal["running", "finished", "stopped", "diverged"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run. `train` and `validation` are its logged events in order; `age_s` the seconds since
    it last wrote one. A run has diverged if its last session ended with a loss that is no number,
    or spikes have taken it back as often as its recipe allows.
    """

    path: Path
    recipe: TrainRecipe
    state: RunState
    step: int
    train: tuple[dict[str, Any], ...]
    validation: tuple[dict[str, Any], ...]
    num_spikes: int
    age_s: float
    store: str | None

    @property
    def backbone(self) -> str:
        """Architecture, depth and width in a few words."""
        size = self.recipe.backbone
        return f"{size.title} {size.depth}×{size.hidden_dim}"

    def held_out(self, weights: Literal["raw", "ema"]) -> tuple[float, float | None] | None:
        """The last held-out loss with its standard error, None where there was none."""
        if not self.validation:
            return None
        found = self.validation[-1][weights]
        error = found.get("error")
        return float(found["loss"]), None if error is None else float(error)


def read_run(path: Path | str) -> RunRecord:
    """Read one run's folder.

    Raises:
        UserError: it is no run, or its recipe or log cannot be read.
    """
    path = Path(path)
    if not _is_run(path):
        what = "a file" if path.is_file() else "no run" if path.exists() else "missing"
        raise UserError(
            f"{path} is {what}; a run is a folder that rectiflow train has made, with recipe.json "
            "and environment.json"
        )
    recipe = load_config(path / "recipe.json", TrainRecipe)
    log = path / "metrics.jsonl"
    events = read_events(log) if log.exists() else []
    try:
        written = float(events[-1]["time"]) if events else (path / "recipe.json").stat().st_mtime
        train = tuple(event for event in events if event["kind"] == "train")
        validation = tuple(event for event in events if event["kind"] == "validation")
        step = max([newest_step(path), *(int(event["step"]) for event in events[-1:])])
    except (KeyError, TypeError) as error:
        raise UserError(f"{log} is not the log of a run: an event lacks {error}") from error
    spikes = path / "spikes.jsonl"
    num_spikes = len(read_events(spikes)) if spikes.exists() else 0
    return RunRecord(
        path=path,
        recipe=recipe,
        state=_state(path, step, recipe, num_spikes),
        step=step,
        train=train,
        validation=validation,
        num_spikes=num_spikes,
        age_s=max(0.0, time.time() - written),
        store=_store_of(path),
    )


def _store_of(run: Path) -> str | None:
    """The fingerprint of the data that its model was trained on, None where there is no model."""
    try:
        return read_description(run)["provenance"].get("store")
    except (UserError, KeyError):
        return None


def find_runs(folder: Path | str) -> list[Path]:
    """The folders of runs in `folder` and up to `MAX_DEPTH` below, or `folder` itself.

    Raises:
        UserError: it is missing or no folder, or holds no runs.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            raise UserError(
                f"cannot list the runs of {folder}: it "
                f"{'is a file' if folder.exists() else 'does not exist'}; give a folder"
            )
        found = sorted(_search(folder, MAX_DEPTH))
    except OSError as error:
        raise explain_os_error(error, folder, "list the runs of") from error
    if not found:
        raise UserError(
            f"{folder} holds no runs: rectiflow train makes them, each a folder with recipe.json "
            "and environment.json"
        )
    return found


def list_runs(folder: Path | str) -> str:
    """A table of a folder's runs, the latest first; runs that cannot be read follow with why.

    Raises:
        UserError: as `find_runs`.
    """
    runs: list[RunRecord] = []
    unreadable: list[str] = []
    for path in find_runs(folder):
        try:
            runs.append(read_run(path))
        except UserError as error:
            unreadable.append(f"unreadable: {error}")
    runs.sort(key=lambda run: run.age_s)
    header = ("run", "recipe", "backbone", "step", "state", "raw", "EMA", "images/s", "age")
    rows = [header, *(_row(run, Path(folder)) for run in runs)]
    return "\n".join([*([text_table(rows)] if runs else []), *unreadable])


def recipe_differences(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[str, ...]]]:
    """The settings in which runs' recipes differ: dotted name and each run's value."""
    recipes = [to_json(run.recipe, whole=True) for run in runs]
    found: dict[str, dict[int, Any]] = {}
    firsts: dict[str, Any] = {}
    for number, other in enumerate(recipes[1:], start=1):
        for name, before, after in differing_settings(recipes[0], other):
            firsts[name] = before
            found.setdefault(name, {})[number] = after
    return [
        (name, tuple(str(others.get(i, firsts[name])) for i in range(len(runs))))
        for name, others in found.items()
    ]


def final_metrics(runs: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """Rows of a table, the first its header: what each run has come to."""
    rows: list[tuple[str, ...]] = [_FINAL_COLUMNS]
    for run, name in zip(runs, names_of(runs), strict=True):
        last = run.train[-1] if run.train else {}
        usage = last.get("usage") or {}
        rows.append(
            (
                name,
                run.state,
                f"{run.step:,}",
                f"{float(last['loss']):.4f}" if last else "–",
                _loss_text(run.held_out("raw")),
                _loss_text(run.held_out("ema")),
                pace(last["images_per_second"]) if last else "–",
                f"{usage['flops_per_second'] / 1e9:,.1f} G" if usage else "–",
                f"{usage['peak_memory_bytes'] / 1e9:,.2f} GB" if usage else "–",
                str(run.num_spikes),
                format_seconds(float(last["elapsed_s"])) if last else "–",
            )
        )
    return rows


def cautions(runs: Sequence[RunRecord]) -> list[str]:
    """Why the runs' held-out losses may not compare, one sentence each."""
    names = {name.partition(".")[0] for name, _ in recipe_differences(runs)}
    moved = sorted(names & {"formulation", "shift", "num_validation", "caption_mix"})
    found: list[str] = []
    if moved:
        found.append(
            f"The recipes differ in {', '.join(moved)}: their losses measure different things, "
            "compare pictures instead."
        )
    if len({run.store for run in runs if run.store is not None}) > 1:
        found.append("The runs were trained on different stores, and held out different samples.")
    return found


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """A short name for each run: its folder's, with as much of the path as tells them apart."""
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len({run.path.resolve() for run in runs}):
            return names
    return [str(run.path) for run in runs]


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif depth > 0:
        for entry in os.scandir(folder):
            if (
                entry.is_dir(follow_symlinks=False)
                and not entry.name.startswith(".")
                and entry.name not in _NEVER_SEARCHED
            ):
                try:
                    yield from _search(Path(entry.path), depth - 1)
                except PermissionError:
                    continue  # somebody else's folder among ours


def _is_run(path: Path) -> bool:
    return (path / "recipe.json").is_file() and (path / "environment.json").is_file()


def _state(path: Path, step: int, recipe: TrainRecipe, num_spikes: int) -> RunState:
    if is_in_use(path):
        return "running"
    if step >= recipe.max_steps and (path / "model").is_dir():
        return "finished"
    # The next spike, which ended it, leaves neither a record nor a folder where it is a number.
    if recipe.spikes.is_on and num_spikes >= recipe.spikes.limit:
        return "diverged"
    failed = [int(p.name.removeprefix("failure_step_")) for p in path.glob("failure_step_*")]
    return "diverged" if any(number > newest_step(path) for number in failed) else "stopped"


def _row(run: RunRecord, folder: Path) -> tuple[str, ...]:
    relative = os.path.relpath(run.path, folder)
    return (
        str(run.path) if relative == "." else relative,
        run.recipe.name,
        run.backbone,
        f"{run.step:,}/{run.recipe.max_steps:,}",
        run.state,
        _loss_text(run.held_out("raw")),
        _loss_text(run.held_out("ema")),
        pace(run.train[-1]["images_per_second"]) if run.train else "–",
        age_text(run.age_s),
    )


def _loss_text(loss: tuple[float, float | None] | None) -> str:
    if loss is None:
        return "–"
    value, error = loss
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def age_text(seconds: float) -> str:
    """A span of time in its largest unit: 12 s, 5 min, 3 h, 2 d."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
