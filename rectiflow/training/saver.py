"""Writes checkpoints and the exported model, beside the training where that is possible.

On the walk of a sample: the loop hands over a snapshot now and then. What is a copy is written by a
thread while the next steps run; the live tensors of a process alone are written at once. Each
process writes its own part; the first one, once all are there, exports the model.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rectiflow.training.checkpoint import checkpoint_of, save_checkpoint
from rectiflow.training.export import export_model
from rectiflow.training.feed import StoreFacts
from rectiflow.training.hooks import CheckpointSaved
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import Snapshot


class Saver:
    """One snapshot at a time; used as a context, whose end waits for the last one.

    `token` names this session of the run, the same in all its processes.
    """

    def __init__(self, run: Path, recipe: TrainRecipe, facts: StoreFacts, token: str) -> None:
        self._run, self._recipe, self._facts, self.token = run, recipe, facts, token
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: Future[CheckpointSaved | None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def save(self, snapshot: Snapshot) -> None:
        """Write one, or begin to; the one before must be finished.

        Raises:
            UserError: as `finished`.
        """
        assert self._pending is None
        if snapshot.is_copy:
            self._pending = self._thread.submit(self._write, snapshot)
        else:
            self._pending = Future()
            self._pending.set_result(self._write(snapshot))

    def finished(self, *, wait: bool) -> CheckpointSaved | None:
        """The one that has been written since the last call; None if there is none.

        With `wait`, after one that has been begun is written. Only the first process knows when
        all parts are.

        Raises:
            UserError: it cannot be written (disk full, no permission).
        """
        pending = self._pending
        if pending is None or not (wait or pending.done()):
            return None
        self._pending = None
        return pending.result()

    def export(self, step: int) -> None:
        """Write the model alone, of the checkpoint of that step; for the first process."""
        export_model(self._run, checkpoint_of(self._run, step), self._recipe, self._facts)

    def _write(self, snapshot: Snapshot) -> CheckpointSaved | None:
        path = save_checkpoint(
            self._run, snapshot, self._recipe, self._facts.fingerprint, self.token
        )
        if path is None:
            return None
        self.export(snapshot.step)
        return CheckpointSaved(step=snapshot.step, path=path)
