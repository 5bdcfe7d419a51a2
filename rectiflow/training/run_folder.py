"""A run's folder: who may write to it, which recipe it follows, where its parts lie.

`recipe.json`, `environment.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `samples/` and
`model/`, the exported model. The lock is the kernel's, so a killed process leaves none behind.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rectiflow.base.config import load_config
from rectiflow.base.errors import UserError
from rectiflow.base.files import explain_os_error
from rectiflow.training.checkpoint import refuse_other_recipe
from rectiflow.training.recipe import TrainRecipe

_LOCK = ".lock"
#: What `rectiflow finetune` makes in a run's folder before the run begins: data, other parts.
PREPARED_FOLDER = "prepared"
# A killed process may leave a child that was about to run another program and still holds the lock.
_LEFTOVER_TIMEOUT_S = 10.0


def refuse_foreign_folder(run: Path) -> None:
    """Pass if `run` is absent, empty or a run; never write into a folder of something else.

    Raises:
        UserError: it holds something else, or is a file.
    """
    try:
        if not run.exists() or (run / "recipe.json").exists():
            return
        if not run.is_dir():
            raise UserError(f"{run} is a file; choose another place for the run's folder")
        usual = (_LOCK, PREPARED_FOLDER)
        strange = [p.name for p in run.iterdir() if p.name not in usual and ".tmp-" not in p.name]
    except OSError as error:
        raise explain_os_error(error, run, "open the run") from error
    if strange:
        raise UserError(
            f"{run} is not a run: it holds {sorted(strange)[0]!r} and no recipe.json; choose a "
            "new folder, or the folder of a run to continue"
        )


@contextmanager
def locked(run: Path) -> Generator[None]:
    """Hold the run's folder for this process alone, making it when missing.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    path = run / _LOCK
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain_os_error(error, run, "write the run") from error
    try:
        holder = ""
        deadline = time.monotonic() + _LEFTOVER_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                if _is_running(holder) or time.monotonic() > deadline:
                    raise UserError(
                        f"another process (number {holder or 'unknown'}) is at work in {run}; "
                        "wait until it ends, stop it, or choose another folder"
                    ) from error
            except OSError as error:  # a file system without locks
                raise explain_os_error(error, path, "lock") from error
            time.sleep(0.05)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def is_in_use(run: Path) -> bool:
    """Whether a process is training in `run`; asks the kernel and leaves nothing behind."""
    try:
        descriptor = os.open(run / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who ask do not see each other, and given back within microseconds.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, where no process can hold one
        return False
    finally:
        os.close(descriptor)
    return False


def _is_running(holder: str) -> bool:
    """Whether the process that wrote its number into the lock runs on this machine, or may do."""
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True
    return True


def settle_recipe(run: Path, recipe: TrainRecipe, max_steps: int | None) -> TrainRecipe:
    """The recipe that the run follows from here on, to be kept as `recipe.json`.

    A new run takes the recipe's number of steps and a continued one its own, unless `max_steps`
    is given.

    Raises:
        CheckpointError: the run follows another recipe; the text says what differs.
    """
    path = run / "recipe.json"
    length = recipe.max_steps
    if path.exists():
        saved = load_config(path, TrainRecipe)
        refuse_other_recipe(saved, recipe, where=run)
        length = saved.max_steps
    return dataclasses.replace(recipe, max_steps=max_steps or length)
