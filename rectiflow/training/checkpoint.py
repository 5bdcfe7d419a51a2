"""Checkpoints: one folder a step, whole or absent, checked by hash, never pickle.

`checkpoints/step_00001234/` holds `weights`, the averages and `optimizer` as safetensors, and
`state.json` with the counters, the recipe, the model that the run started from, and the SHA-256 of
each of those files. Processes that share a state write their parts side by side (`tensor_files`)
and read, in whatever number, what is theirs; the first one makes the folder known once all parts
are there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import (
    atomic_directory,
    explain_os_error,
    joined_directory,
    read_json,
    sha256_file,
    write_json,
)
from rectiflow.distributed.world import ALONE, PATIENCE, World
from rectiflow.training.recipe import CHANGEABLE, TrainRecipe, differences
from rectiflow.training.spikes import SpikeMemory
from rectiflow.training.start_from import read_same_weights
from rectiflow.training.state import Snapshot, TrainState
from rectiflow.training.tensor_files import SavedTensors, write_pieces

FORMAT = 1
STATE_FILE = "state.json"
#: How often the first process looks whether the others' parts are there.
LOOK_EVERY_S = 0.02
_KEYS = ("format", "step", "elapsed_s", "loss_window", "origin", "sha256", "store", "recipe")
_NAME = re.compile(r"step_\d{8,}")


def save_checkpoint(
    run: Path, state: Snapshot, recipe: TrainRecipe, store: str, token: str | None = None
) -> Path | None:
    """Write `run/checkpoints/step_N` and remove those older than the last `keep_last`.

    `store` is the fingerprint of the training data, which a continued run must share. Each process
    that has a snapshot calls it with its own and the same `token`, which names this session of the
    run. Returns the folder in the first process, which waits for the others, None in these.

    Raises:
        UserError: it cannot be written (disk full, no permission), or a part does not come.
    """
    path = checkpoint_of(run, state.step)
    with written_together(path, state.part, token) as unfinished:
        write_state(unfinished, state, recipe, store)
    if state.part > 0:
        return None
    remove_old(run, state.step, recipe.keep_last)
    return path


@contextmanager
def written_together(path: Path, part: int, token: str | None) -> Generator[Path]:
    """A folder into which the holders of all parts write; the end of the first makes it `path`.

    Raises:
        UserError: it cannot be written.
    """
    if part == 0:
        with atomic_directory(path, token) as folder:
            yield folder
    else:
        assert token is not None
        with joined_directory(path, token) as folder:
            yield folder


def remove_old(run: Path, step: int, keep_last: int) -> None:
    """Keep only the last `keep_last` of the checkpoints up to `step`."""
    known = [path for path in step_folders(checkpoints_of(run)) if step_of(path) <= step]
    for path in known[keep_last:]:
        try:
            remove_whole(path)
        except UserError as error:  # what is too much does not end a run
            print(f"rectiflow: an old checkpoint is left where it is: {error}", file=sys.stderr)


def write_state(folder: Path, state: Snapshot, recipe: TrainRecipe, store: str) -> None:
    """Write the files of one part into an existing folder; the first waits for all others' files.

    Raises:
        UserError: they cannot be written, or a part does not come.
    """
    hashes: dict[str, str] = {}
    for stem, pieces in state.pieces.items():
        file = write_pieces(folder, stem, pieces, part=state.part, num_parts=state.num_parts)
        hashes[file.name] = sha256_file(file)
    if state.part > 0:
        _leave_note(_note_of(folder, state.part), hashes)
        return
    for part in range(1, state.num_parts):
        hashes |= _wait_for(_note_of(folder, part))
    header = {
        "format": FORMAT,
        "step": state.step,
        "elapsed_s": state.elapsed_s,
        "loss_window": state.loss_window,
        "origin": state.origin,
        "sha256": hashes,
        "store": store,
        "recipe": to_json(recipe),
    }
    if recipe.spikes.is_on:
        header["spikes"] = asdict(state.spikes)
    write_json(folder / STATE_FILE, header)


def _note_of(folder: Path, part: int) -> Path:
    """Where the holder of a part says that it is written, until the first one has read it."""
    return folder / f"part-{part + 1:05d}.json"


def _leave_note(note: Path, hashes: Mapping[str, str]) -> None:
    """The last thing that is done to the folder, which the first process may rename at once."""
    unfinished = note.with_suffix(".tmp")
    unfinished.write_text(json.dumps(hashes), "utf-8")
    os.replace(unfinished, note)


def _wait_for(note: Path) -> dict[str, str]:
    until = time.monotonic() + PATIENCE.total_seconds()
    while not note.exists():
        if time.monotonic() > until:
            raise UserError(
                f"the checkpoint's {note.stem} has not been written within {PATIENCE}; see that "
                "all processes share the folder of the run"
            )
        time.sleep(LOOK_EVERY_S)
    hashes = read_json(note)
    note.unlink()
    return hashes


def load_latest(
    run: Path, recipe: TrainRecipe, store: str, world: World = ALONE
) -> TrainState | None:
    """The state of the newest complete checkpoint; None where there is none at all.

    A damaged checkpoint is passed over, with a line on stderr. Every process of `world` calls it;
    how many wrote the checkpoint does not matter.

    Raises:
        CheckpointError: all are damaged, or the newest was written for another recipe.
    """
    found = world.from_first(lambda: _newest_complete(run))
    return None if found is None else load_state(*found, recipe, store, world)


def _newest_complete(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files are all whole, with its `state.json`.

    Damaged ones that are newer get another name, or they would count among those that are kept.
    """
    folder = checkpoints_of(run)
    damages: dict[Path, str] = {}
    for path in step_folders(folder):
        try:
            header = read_header(path)
            _refuse_other_step(path, header)
        except CheckpointError as error:
            damages[path] = str(error)
            continue
        for damaged, reason in damages.items():
            aside = damaged.with_name(f"{damaged.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            _rename(damaged, aside)
            print(
                f"rectiflow: skipping a damaged checkpoint, now {aside}: {reason}", file=sys.stderr
            )
        return path, header
    if damages:
        raise CheckpointError(
            f"no usable checkpoint in {folder}: {next(iter(damages.values()))}; choose another run "
            "folder, or remove this one to start anew"
        )
    return None


def _refuse_other_step(path: Path, header: Mapping[str, Any]) -> None:
    if header["step"] != step_of(path):
        raise CheckpointError(
            f"{path / STATE_FILE} is of step {header['step']}: it is damaged, or its folder was "
            "renamed"
        )


def read_header(path: Path) -> dict[str, Any]:
    """`state.json` of one checkpoint, after every file's hash has been checked.

    Raises:
        CheckpointError: a file is missing, cut or changed.
        UserError: a file cannot be read just now, or is of another version's format.
    """
    try:
        header = read_json(path / STATE_FILE)
    except UserError as error:
        raise _damage(error) from error
    try:
        missing = [key for key in _KEYS if key not in header]
    except TypeError:
        missing = list(_KEYS)
    if missing:
        raise CheckpointError(f"{path / 'state.json'} lacks {missing[0]!r}; it is damaged")
    version, hashes = header["format"], header["sha256"]
    if version != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {version!r}, this version reads {FORMAT}; continue it "
            "with the version of rectiflow that wrote it"
        )
    for name, expected in hashes.items():
        try:
            found = sha256_file(path / name)
        except UserError as error:
            raise _damage(error) from error
        if found != expected:
            raise CheckpointError(
                f"{path / name} is cut or damaged (its SHA-256 is {found[:12]}…, "
                f"state.json says {expected[:12]}…)"
            )
    return header


def _damage(error: UserError) -> UserError:
    """What an error of reading says of the checkpoint: damaged, or out of reach for now.

    Of one that is out of reach nothing is known, and a run that passed it over would part from it.
    """
    cause = error.__cause__
    is_there = not isinstance(cause, FileNotFoundError | NotADirectoryError)
    return error if isinstance(cause, OSError) and is_there else CheckpointError(str(error))


def load_state(
    path: Path,
    header: Mapping[str, Any],
    recipe: TrainRecipe,
    store: str,
    world: World = ALONE,
) -> TrainState:
    """The state of one checkpoint, for the recipe and the data that it was written with.

    Raises:
        CheckpointError: it was written with others; the text says what differs.
    """
    _refuse_other_run(path, header, recipe, store)
    # What a LoRA changes is not in the checkpoint, as it never changes.
    base = None
    if recipe.lora is not None and recipe.start_from is not None:
        base = read_same_weights(recipe.start_from, header["origin"])
    state = TrainState.start(recipe, base, world)
    _load_into(state, path, header)
    state.elapsed_s = header["elapsed_s"]
    return state


def return_to_latest(state: TrainState, run: Path, recipe: TrainRecipe, store: str) -> bool:
    """Load the newest complete checkpoint of `state`'s run into it; False where there is none.

    The time that has passed stays. No second state is built, and a checkpoint that cannot be used
    changes nothing. Every process of the state's world calls it.

    Raises:
        CheckpointError: as `load_latest`.
    """
    found = state.world.from_first(lambda: _newest_complete(run))
    if found is None:
        return False
    path, header = found
    _refuse_other_run(path, header, recipe, store)
    _load_into(state, path, header)
    return True


def _refuse_other_run(
    path: Path, header: Mapping[str, Any], recipe: TrainRecipe, store: str
) -> None:
    refuse_other_recipe(from_json(TrainRecipe, header["recipe"]), recipe, where=path)
    if header["store"] != store:
        raise CheckpointError(
            f"{path} was trained on other data (store {header['store'][:12]}…, this one is "
            f"{store[:12]}…); continue with the store that it began with, or choose another run "
            "folder"
        )


def _load_into(state: TrainState, path: Path, header: Mapping[str, Any]) -> None:
    """Tensors first, which may be refused, then the counters."""
    state.load_tensors({stem: SavedTensors.of(path, stem) for stem in state.tensors()})
    state.step = header["step"]
    state.loss_window = list(header["loss_window"])
    state.origin = header["origin"]
    state.spikes = SpikeMemory(**header.get("spikes", {}))


def refuse_other_recipe(saved: TrainRecipe, given: TrainRecipe, *, where: Path) -> None:
    """Pass only if a run of `saved` may go on as `given`.

    Raises:
        CheckpointError: settings outside `CHANGEABLE` differ.
    """
    differing = differences(saved, given)
    if differing:
        shown = "; ".join(differing[:3])
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{where} was made by another recipe: {shown}{more}. Continue it with its own recipe "
            f"({saved.name}) or choose another run folder. A continued run may change only "
            f"{', '.join(CHANGEABLE)}"
        )


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def averages_of(run: Path) -> Path:
    """The folder of the power-function averages that a run keeps (`post_hoc`)."""
    return run / "averages"


def samples_of(run: Path) -> Path:
    """The folder of the pictures that are drawn on the way."""
    return run / "samples"


def checkpoint_of(run: Path, step: int) -> Path:
    """The folder of one step's checkpoint, kept or not."""
    return checkpoints_of(run) / step_name(step)


def step_folders(folder: Path) -> list[Path]:
    """The folders named after steps in a folder, the newest first."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step that a folder is named after."""
    return int(path.name.removeprefix("step_"))


def remove_whole(path: Path) -> None:
    """Remove a folder so that a half-removed one is never taken for a whole one.

    Where others still hold its files open on a network's disk, `clear_unfinished` takes the rest.

    Raises:
        UserError: it stays as it is.
    """
    doomed = path.with_name(f".{path.name}.tmp-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    _rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _rename(path: Path, other: Path) -> None:
    try:
        path.rename(other)
    except OSError as error:
        raise explain_os_error(error, path, f"rename to {other.name} the folder") from error


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint, damaged or not; 0 where there is none."""
    return max((step_of(path) for path in step_folders(checkpoints_of(run))), default=0)


def clear_unfinished(run: Path) -> None:
    """Remove what a killed process left half-written; only for the holder of the run's lock."""
    for folder in (run, checkpoints_of(run), averages_of(run), samples_of(run)):
        for path in folder.glob(".*.tmp-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
