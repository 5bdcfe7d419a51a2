"""What a finished grid leaves: raw metrics as Parquet, and a report as a page of Markdown.

Both lie in `experiments/DATE_NAME/` of the study's folder, ready to be kept beside the code.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rectiflow.base.files import atomic_directory, read_json
from rectiflow.evaluation.charts import format_seconds
from rectiflow.studies.folder import ROWS_FILE, cell_folder
from rectiflow.studies.study import Cell, Report, Row, Study, Table

METRICS_FILE = "metrics.parquet"


def collect(folder: Path, cells: Iterable[Cell]) -> list[Row]:
    """The rows of finished cells, in the grid's order."""
    return [
        row for cell in cells for row in read_json(cell_folder(folder, cell) / ROWS_FILE)["rows"]
    ]


def write_results(
    folder: Path, study: Study, cells: Sequence[Cell], started: str, *, command: str
) -> Path:
    """Write metrics, plots and `README.md`; replaces those of an earlier call.

    Raises:
        UserError: they cannot be written.
    """
    rows = collect(folder, cells)
    report = study.report(rows)
    path = folder / "experiments" / f"{started}_{study.name.replace('-', '_')}"
    environments = [
        read_json(cell_folder(folder, cell) / ROWS_FILE)["environment"] for cell in cells
    ]
    if path.exists():
        shutil.rmtree(path)
    with atomic_directory(path) as unfinished:
        pq.write_table(_as_table(rows), unfinished / METRICS_FILE)
        for plot in report.plots:
            (unfinished / plot.file).write_bytes(plot.content)
        page = _page(study, report, environments, command=command)
        (unfinished / "README.md").write_text(page, encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    """The rows of a report's `metrics.parquet`, without the columns that a row does not have."""
    rows = pq.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _as_table(rows: Sequence[Row]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _page(
    study: Study, report: Report, environments: Sequence[dict[str, Any]], *, command: str
) -> str:
    seconds = sum(environment["seconds"] for environment in environments)
    parts = [
        f"# {study.question}",
        f"Reproduces {study.source} of [arXiv 2403.03206](https://arxiv.org/abs/2403.03206).",
        f"**Verdict.** {report.verdict}",
        f"**Setting.** {report.setting}",
        f"**Command.** `{command}`: {len(environments)} cells, {format_seconds(seconds)} of work "
        f"(the sum over cells) on {_named(environments)}. Raw metrics: "
        f"[{METRICS_FILE}]({METRICS_FILE}), a row for each measurement.",
        *(_markdown(table) for table in report.tables),
        *(f"![{plot.caption}]({plot.file})\n\n{plot.caption}" for plot in report.plots),
    ]
    return "\n\n".join(parts) + "\n"


def _named(environments: Sequence[dict[str, Any]]) -> str:
    def distinct(values: Iterable[str]) -> str:
        return " and ".join(dict.fromkeys(values))

    return (
        distinct(
            e.get("device")
            or f"{e['processor']} ({e['cpu_capability']}), {e['num_threads']} "
            f"thread{'s' * (e['num_threads'] > 1)} a cell"
            for e in environments
        )
        + ", PyTorch "
        + distinct(str(e["packages"]["torch"]) for e in environments)
        + ", commit "
        + distinct(str(e["commit"])[:12] for e in environments)
    )


def _markdown(table: Table) -> str:
    lines = [
        f"## {table.title}",
        "",
        "| " + " | ".join(table.header) + " |",
        "|" + "---|" * len(table.header),
        *("| " + " | ".join(row) + " |" for row in table.rows),
    ]
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines)
