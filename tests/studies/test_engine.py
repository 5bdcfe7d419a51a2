"""A grid runs each cell once, whatever interrupts it, and its folder belongs to one grid."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from rectiflow.base.errors import ConfigError, DivergedError, UserError
from rectiflow.base.files import file_lock, read_json, write_json
from rectiflow.studies import engine
from rectiflow.studies.bench import Bench
from rectiflow.studies.engine import run_study
from rectiflow.studies.plots import Curve, plot_curves
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.study import Cell, Report, Row, Study, Table

COMMAND = "rectiflow study counting --out here"


@dataclass(frozen=True, kw_only=True)
class Counting(Study):
    """Each cell appends a line to a file in its folder and measures its number."""

    name: ClassVar[str] = "counting"
    question: ClassVar[str] = "Does it count?"
    source: ClassVar[str] = "table 0"

    num: int = 3
    diverging: int | None = None
    failing: int | None = None

    def cells(self) -> tuple[Cell, ...]:
        return tuple(Cell(name=f"c{i}", factors={"number": i}) for i in range(self.num))

    def second_round(self, rows: Sequence[Row]) -> tuple[Cell, ...]:
        best = max(row.get("square", -1) for row in rows)
        return (Cell(name=f"again-{best}", factors={"number": best}),)

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        number = int(cell.factors["number"])
        if number == self.failing and not (bench.folder / "mended").exists():
            raise KeyboardInterrupt
        with (folder / "runs").open("a") as file:
            file.write("run\n")
        if number == self.diverging:
            raise DivergedError("the loss is nan")
        return [{"square": number**2}, {"square": number**2, "words": ["a", "b"]}]

    def report(self, rows: Sequence[Row]) -> Report:
        total = sum(row.get("square", 0) for row in rows)
        curve = Curve(xs=[0, 1], ys=[0.0, 1.0], low=[0.0, 0.5], high=[0.5, 1.0])
        return Report(
            setting="Numbers.",
            verdict=f"The total is {total}.",
            tables=(Table(title="Rows", header=("cell",), rows=(("c0",),), note="None."),),
            plots=(plot_curves("a.svg", {"a": curve}, caption="A", x_label="x", y_label="y"),),
        )


def num_runs(out: Path) -> dict[str, int]:
    return {path.parent.name: path.read_text().count("run") for path in out.glob("cells/*/runs")}


def test_both_rounds_run_once_and_a_report_is_left(tmp_path: Path) -> None:
    path = run_study(Counting(), tmp_path, command=COMMAND)
    assert num_runs(tmp_path) == {"c0": 1, "c1": 1, "c2": 1, "again-4": 1}
    page = (path / "README.md").read_text()
    for text in ("# Does it count?", "The total is 42.", COMMAND, "| c0 |", "![A](a.svg)"):
        assert text in page
    rows = read_rows(path / METRICS_FILE)
    assert len(rows) == 8
    assert rows[1] == {
        "cell": "c0",
        "number": 0,
        "diverged": False,
        "square": 0,
        "words": ["a", "b"],
    }
    before = (path / "a.svg").read_bytes()
    assert run_study(Counting(), tmp_path, command=COMMAND) == path
    assert num_runs(tmp_path)["c0"] == 1
    assert (path / "a.svg").read_bytes() == before


def test_an_interrupted_grid_goes_on_without_repeating(tmp_path: Path) -> None:
    study = Counting(failing=1)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, command=COMMAND)
    assert num_runs(tmp_path) == {"c0": 1}
    (tmp_path / "mended").touch()
    run_study(study, tmp_path, command=COMMAND)
    assert set(num_runs(tmp_path).values()) == {1}


def test_the_work_on_a_cell_is_that_of_all_its_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    run, lasted = Counting.run, iter([100.0, 20.0, 3.0])

    def run_a_while(self, cell, bench, folder):
        if cell.name == "c1":
            clock.now += next(lasted)
        return run(self, cell, bench, folder)

    monkeypatch.setattr(Counting, "run", run_a_while)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_study(Counting(failing=1), tmp_path, command=COMMAND)
    assert read_json(tmp_path / "cells" / "c1" / "seconds.json") == {"seconds": 120.0}
    (tmp_path / "mended").touch()
    path = run_study(Counting(failing=1), tmp_path, command=COMMAND)
    assert read_json(tmp_path / "cells" / "c1" / "rows.json")["environment"]["seconds"] == 123.0
    assert not (tmp_path / "cells" / "c1" / "seconds.json").exists()
    assert "2 min 3 s of work (the sum over cells)" in (path / "README.md").read_text()


def test_what_stops_a_cell_is_told_even_where_its_seconds_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(engine, "keep_seconds", refuse)
    with pytest.raises(KeyboardInterrupt):
        run_study(Counting(failing=1), tmp_path, command=COMMAND)


def test_a_worker_whose_command_was_killed_begins_no_other_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    parent = SimpleNamespace(is_alive=lambda: gone.poll() is None)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    with pytest.raises(KeyboardInterrupt):
        run_study(Counting(), tmp_path, command=COMMAND)
    assert num_runs(tmp_path) == {}


def test_a_diverged_cell_is_recorded_and_the_grid_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_study(Counting(diverging=1), tmp_path, command=COMMAND)
    rows = read_rows(path / METRICS_FILE)
    assert [row for row in rows if row["diverged"]] == [
        {"cell": "c1", "number": 1, "diverged": True}
    ]
    assert len(num_runs(tmp_path)) == 4
    assert "c1 has diverged: the loss is nan" in capsys.readouterr().err
    run_study(Counting(diverging=1), tmp_path, command=COMMAND)
    assert num_runs(tmp_path)["c1"] == 1


def test_a_device_that_is_not_here_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "study"
    with pytest.raises(ConfigError, match="device 'no-such' cannot be used here"):
        run_study(Counting(), out, command=COMMAND, device="no-such")
    assert not out.exists()


def test_another_grid_is_refused_with_what_differs(tmp_path: Path) -> None:
    run_study(Counting(num=1), tmp_path, command=COMMAND)
    with pytest.raises(UserError, match=r"sizes.num is 1 there and 2 here; cells.c1 is None there"):
        run_study(Counting(num=2), tmp_path, command=COMMAND)
    begun = read_json(tmp_path / "study.json")
    write_json(tmp_path / "study.json", begun | {"version": "0.0.1"})
    with pytest.raises(UserError, match="another version of it: version is '0.0.1' there"):
        run_study(Counting(num=1), tmp_path, command=COMMAND)
    foreign = tmp_path / "cells"
    with pytest.raises(UserError, match="is no study: it holds 'again-0' and no study.json"):
        run_study(Counting(), foreign, command=COMMAND)


def test_cells_of_a_killed_process_are_taken_over_and_others_left_alone(tmp_path: Path) -> None:
    """A process that holds a cell's claim keeps it; killed, it gives it back."""
    claim = tmp_path / "cells" / "c1" / ".claim"
    source = f"""
        import time
        from rectiflow.base.files import file_lock, read_json, write_json
        with file_lock({str(claim)!r}):
            print("held", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with file_lock(claim, wait=False) as is_ours:
            assert not is_ours
        holder.kill()
    with file_lock(claim, wait=False) as is_ours:
        assert is_ours


def test_cells_have_names_of_their_own(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Repeating(Counting):
        def cells(self) -> tuple[Cell, ...]:
            return super().cells() * 2

    with pytest.raises(ConfigError, match="2 cells of the grid are named 'c0'"):
        run_study(Repeating(), tmp_path, command=COMMAND)

    @dataclass(frozen=True, kw_only=True)
    class Returning(Counting):
        def second_round(self, rows: Sequence[Row]) -> tuple[Cell, ...]:
            return self.cells()

    with pytest.raises(ConfigError, match="2 cells of the grid are named 'c0'"):
        run_study(Returning(), tmp_path / "other", command=COMMAND)


def test_a_cell_is_named_as_a_folder() -> None:
    with pytest.raises(ConfigError, match="cell name '../x' is no folder's name"):
        Cell(name="../x", factors={})
