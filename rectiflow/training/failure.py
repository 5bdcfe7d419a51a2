"""When the loss is no number: keep the batch and the state that make it so, and say where.

`failure_step_N/` is a checkpoint of the state before step N plus `batch.safetensors`; nothing is
repaired or skipped. `replay` runs the step again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rectiflow.base.config import from_json
from rectiflow.data.records import Batch
from rectiflow.training.checkpoint import load_state, read_header, write_state, written_together
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import Snapshot
from rectiflow.training.step import StepResult, train_step
from rectiflow.training.tensor_files import read_tensors, write_tensors

_TEXT = "text."


def failure_of(run: Path, step: int) -> Path:
    """The folder of a step that failed."""
    return run / f"failure_step_{step:08d}"


def save_failure(
    path: Path,
    state: Snapshot,
    batch: Batch,
    recipe: TrainRecipe,
    store: str,
    token: str | None = None,
) -> None:
    """Write the folder of the step that could not be made from `state`.

    Each process that has a snapshot calls it with its own, and with the whole batch and the same
    `token`.

    Raises:
        UserError: it cannot be written.
    """
    if state.part == 0 and path.exists():  # a continued run failed at the same place
        shutil.rmtree(path)
    columns = {_TEXT + name: column for name, column in batch.encoded_text.items()}
    plain = {
        "x0_mean": batch.x0_mean,
        "x0_logvar": batch.x0_logvar,
        "keys": batch.keys,
        "indices": batch.indices,
        "positions": batch.positions,
    }
    plain |= {
        name: column
        for name, column in (("weights", batch.weights), ("features", batch.features))
        if column is not None
    }
    with written_together(path, state.part, token) as folder:
        write_state(folder, state, recipe, store)
        if state.part == 0:
            write_tensors(folder / "batch.safetensors", plain | columns)


def replay(path: Path | str) -> StepResult:
    """Make the failed step again from its folder.

    Raises:
        CheckpointError: the folder is incomplete or damaged.
    """
    path = Path(path)
    header = read_header(path)
    recipe = from_json(TrainRecipe, header["recipe"])
    state = load_state(path, header, recipe, header["store"])
    tensors = read_tensors(path / "batch.safetensors")
    text = {k.removeprefix(_TEXT): tensors.pop(k) for k in list(tensors) if k.startswith(_TEXT)}
    return train_step(state, Batch(encoded_text=text, **tensors), recipe)
