"""Runs a study's grid: every cell once, by any number of processes, then the report.

Killed at any moment, the same call goes on: finished cells are kept, a cell in training continues
from its last checkpoint. A cell whose loss is not finite any more is recorded as diverged, and the
grid goes on. Cells have the same bits wherever they run on as many threads of the same kind of
processor; the report names both.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from rectiflow.base.errors import DivergedError, UserError
from rectiflow.base.files import file_lock
from rectiflow.models.precision import usable_device
from rectiflow.studies.bench import Bench
from rectiflow.studies.folder import (
    cell_folder,
    claimed,
    finish_cell,
    finished_rows,
    keep_seconds,
    open_study_folder,
    refuse_equal_names,
    seconds_spent,
)
from rectiflow.studies.results import collect, write_results
from rectiflow.studies.study import Cell, Study
from rectiflow.training.environment import describe_environment

_POLL_S = 2.0


def run_study(
    study: Study, out: Path | str, *, command: str, num_workers: int = 1, device: str = "cpu"
) -> Path:
    """Run what is left of a study in the folder `out`; returns the folder of its report.

    `num_workers` processes share the cells, each with its part of the processor's cores; the same
    call from another process or machine with the same disk shares them too. Models are trained
    and pictures drawn on `device`. `command` is how a reader repeats it.

    Raises:
        ConfigError: there is no such device.
        UserError: `out` is another study's, or of another grid or version; a worker failed.
        KeyboardInterrupt: it was asked to stop; the same call goes on.
    """
    folder, where = Path(out), usable_device(device)
    started = open_study_folder(folder, study)["started"]
    if num_workers == 1:
        _work(study, folder, where)
    else:
        _work_in_processes(study, folder, where, num_workers)
    with file_lock(folder / ".lock"):
        return write_results(folder, study, all_cells(study, folder), started, command=command)


def all_cells(study: Study, folder: Path) -> tuple[Cell, ...]:
    """Both rounds of a study whose first round is finished."""
    first = study.cells()
    cells = (*first, *study.second_round(collect(folder, first)))
    refuse_equal_names(cells)
    return cells


def _work_in_processes(study: Study, folder: Path, device: torch.device, num_workers: int) -> None:
    # Each process imports anew: threads and forks do not go together.
    context = multiprocessing.get_context("spawn")
    num_threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    workers = [
        context.Process(target=_worker, args=(study, folder, device, num_threads))
        for _ in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:  # they were told as well and save what they have
            worker.join()
        raise
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    # One that was killed may have left nothing undone: the others take over.
    if failed and not _is_finished(study, folder):
        raise UserError(
            f"{len(failed)} of {num_workers} workers stopped with exit code {failed[0]}; what they "
            "said stands above. The same command goes on with the cells that are left"
        )


def _is_finished(study: Study, folder: Path) -> bool:
    def are_done(cells: Sequence[Cell]) -> bool:
        return all(finished_rows(folder, cell) is not None for cell in cells)

    return are_done(study.cells()) and are_done(all_cells(study, folder))


def _worker(study: Study, folder: Path, device: torch.device, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    try:
        _work(study, folder, device)
    except UserError as error:
        print(f"rectiflow: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _work(study: Study, folder: Path, device: torch.device) -> None:
    bench = Bench(folder, device)
    _work_on(study, study.cells(), bench)
    _work_on(study, all_cells(study, folder), bench)


def _work_on(study: Study, cells: Sequence[Cell], bench: Bench) -> None:
    """Work on cells until all are finished, waiting for those that others work on."""
    folder = bench.folder
    while left := [cell for cell in cells if finished_rows(folder, cell) is None]:
        is_idle = True
        for cell in left:
            _stop_if_orphaned()
            with claimed(folder, cell) as is_ours:
                if is_ours and finished_rows(folder, cell) is None:
                    is_idle = False
                    _run_cell(study, cell, bench)
                    number = sum(finished_rows(folder, cell) is not None for cell in cells)
                    print(f"[{number}/{len(cells)}] {cell.name}", flush=True)
        if is_idle:
            time.sleep(_POLL_S)


def _stop_if_orphaned() -> None:
    """End a worker whose command was killed, before it begins another cell."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise KeyboardInterrupt


def _run_cell(study: Study, cell: Cell, bench: Bench) -> None:
    folder = bench.folder
    before, started = seconds_spent(folder, cell), time.perf_counter()

    def seconds() -> float:
        return round(before + time.perf_counter() - started, 1)

    try:
        rows = study.run(cell, bench, cell_folder(folder, cell))
    except DivergedError as error:
        print(f"{cell.name} has diverged: {error}", file=sys.stderr)
        rows = None
    except BaseException:
        # What stopped it, as a full disk, may also keep the seconds from being written.
        with suppress(UserError):
            keep_seconds(folder, cell, seconds())
        raise
    identity = {"cell": cell.name, **cell.factors}
    if rows is None:
        marked = [identity | {"diverged": True}]
    else:
        marked = [identity | {"diverged": False} | row for row in rows]
    environment = describe_environment() | {"seconds": seconds()}
    if bench.device.type == "cuda":
        environment["device"] = torch.cuda.get_device_name(bench.device)
    finish_cell(folder, cell, marked, environment)
