"""A study's folder: which grid it holds, who works on which cell, what is finished.

`study.json` names the grid; `data/` holds its pictures and latent stores; `cells/NAME/` a cell's
training run, `seconds.json` while it is interrupted, and `rows.json` when it is finished. Locks are
the kernel's, so a killed process leaves none behind, and any number of processes may share a grid.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rectiflow
from rectiflow.base.config import to_json
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.base.files import explain_os_error, file_lock, read_json, write_json
from rectiflow.studies.bench import run_folder
from rectiflow.studies.study import Cell, Row, Study
from rectiflow.training.checkpoint import checkpoints_of
from rectiflow.training.recipe import differing_settings

FORMAT = 1
STUDY_FILE = "study.json"
ROWS_FILE = "rows.json"
SECONDS_FILE = "seconds.json"


def open_study_folder(folder: Path, study: Study) -> dict[str, Any]:
    """Begin a study in an empty folder, or find the same one there; returns `study.json`.

    Raises:
        UserError: the folder holds something else, another study, grid or format; the text says
            what differs.
    """
    path = folder / STUDY_FILE
    wanted = _describe(study)
    _refuse_foreign_folder(folder)
    with file_lock(folder / ".lock"):
        if not path.exists():
            write_json(path, wanted | {"started": time.strftime("%Y-%m-%d")})
    found = read_json(path)
    differences = [
        f"{name} is {before!r} there and {after!r} here"
        for name, before, after in differing_settings(
            {key: found.get(key) for key in wanted}, wanted
        )
    ]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{folder} holds another study or another version of it: "
            f"{'; '.join(differences[:3])}{more}. Choose another folder, or continue it with the "
            "version and scale that began it"
        )
    return found


def refuse_equal_names(cells: Sequence[Cell]) -> None:
    """Pass if each cell has a name, and so a folder, of its own.

    Raises:
        ConfigError: two share one.
    """
    counts = Counter(cell.name for cell in cells)
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        raise ConfigError(
            f"{counts[shared[0]]} cells of the grid are named {shared[0]!r}; give each its own name"
        )


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell keeps what it makes."""
    return folder / "cells" / cell.name


def finished_rows(folder: Path, cell: Cell) -> list[Row] | None:
    """The rows of a cell, None while it is unfinished."""
    path = cell_folder(folder, cell) / ROWS_FILE
    return read_json(path)["rows"] if path.exists() else None


def finish_cell(folder: Path, cell: Cell, rows: list[Row], environment: dict[str, Any]) -> None:
    """Keep a cell's rows; from here on it is never run again, so its checkpoints may go."""
    place = cell_folder(folder, cell)
    write_json(place / ROWS_FILE, {"rows": rows, "environment": environment})
    (place / SECONDS_FILE).unlink(missing_ok=True)
    shutil.rmtree(checkpoints_of(run_folder(place)), ignore_errors=True)


def seconds_spent(folder: Path, cell: Cell) -> float:
    """What interrupted work on an unfinished cell took, in seconds; a killed process tells none."""
    path = cell_folder(folder, cell) / SECONDS_FILE
    return read_json(path)["seconds"] if path.exists() else 0.0


def keep_seconds(folder: Path, cell: Cell, seconds: float) -> None:
    """Keep what work on an unfinished cell has taken in all, in seconds."""
    write_json(cell_folder(folder, cell) / SECONDS_FILE, {"seconds": seconds})


@contextmanager
def claimed(folder: Path, cell: Cell) -> Generator[bool]:
    """Whether this process may work on the cell: nobody else does."""
    with file_lock(cell_folder(folder, cell) / ".claim", wait=False) as is_ours:
        yield is_ours


def _refuse_foreign_folder(folder: Path) -> None:
    try:
        if not folder.exists() or (folder / STUDY_FILE).exists():
            return
        strange = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise explain_os_error(error, folder, "open the study") from error
    if strange:
        raise UserError(
            f"{folder} is no study: it holds {strange[0]!r} and no {STUDY_FILE}; choose a new "
            "folder"
        )


def _describe(study: Study) -> dict[str, Any]:
    cells = study.cells()
    refuse_equal_names(cells)
    return {
        "format": FORMAT,
        "version": rectiflow.__version__,
        "study": study.name,
        "sizes": to_json(study),
        "cells": {
            cell.name: {
                "factors": dict(cell.factors),
                "recipe": to_json(cell.recipe) if cell.recipe is not None else None,
            }
            for cell in cells
        },
    }
