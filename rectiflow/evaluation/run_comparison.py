"""Runs side by side: tables for a terminal, and one self-contained page with their curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_write
from rectiflow.evaluation.charts import Line, format_seconds, line_chart, smooth
from rectiflow.evaluation.report import STAGE_COLORS, html_page, panel
from rectiflow.evaluation.results import text_table
from rectiflow.evaluation.runs import (
    RunRecord,
    cautions,
    final_metrics,
    names_of,
    read_run,
    recipe_differences,
)

_Figure = Callable[[dict[str, Any]], float]
#: Logged values that one mean is taken over, as a share of all.
SMOOTHED_SHARE = 1 / 40


def compare_runs(paths: Sequence[Path | str], page: Path | str) -> str:
    """Tables of what differs and of what came out; the curves go into the page.

    Raises:
        UserError: fewer than two different runs, a folder that is no run, or no place to write.
    """
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise UserError(
            f"{len(paths)} run(s) to compare: {', '.join(map(str, paths)) or 'none'}; give two or "
            "more different ones"
        )
    runs = [read_run(path) for path in paths]
    with atomic_write(page, "w") as file:
        file.write(render_comparison(runs))
    differing = recipe_differences(runs)
    parts = [text_table(final_metrics(runs))]
    if differing:
        rows = [("setting", *names_of(runs)), *((name, *values) for name, values in differing)]
        parts.append("What differs in their recipes:\n" + text_table(rows))
    else:
        parts.append("Their recipes are the same.")
    return "\n\n".join([*parts, *cautions(runs)])


def render_comparison(runs: Sequence[RunRecord]) -> str:
    """The page as HTML."""
    names, differing = names_of(runs), recipe_differences(runs)
    panels = [
        _panel(runs, "validation", f"Held-out loss over {axis}", _held_out, key)
        for axis, key in (("steps", "step"), ("training time", "elapsed_s"))
    ] + [
        _panel(runs, "train", f"Training loss over {axis}", _loss, key)
        for axis, key in (("steps", "step"), ("training time", "elapsed_s"))
    ]
    header, *rows = final_metrics(runs)
    body = [
        '<header><div><p class="overline">rectiflow · runs</p>'
        f"<h1>{escape(' against '.join(names))}</h1></div></header>",
        f"<section><h2>What came out</h2>{_table(header, rows)}"
        + "".join(f'<p class="note">{escape(text)}</p>' for text in cautions(runs))
        + "</section>",
        f'<section><h2>Curves</h2><div class="charts">{"".join(panels)}</div></section>',
        "<section><h2>What differs in the recipes</h2>"
        + (
            _table(("setting", *names), [(name, *values) for name, values in differing])
            if differing
            else "<p>Nothing.</p>"
        )
        + "</section>",
    ]
    return html_page(" against ".join(names), "\n".join(body), footer="")


def _held_out(event: dict[str, Any]) -> float:
    return float(event["ema"]["loss"])


def _loss(event: dict[str, Any]) -> float:
    return float(event["loss"])


def _panel(runs: Sequence[RunRecord], kind: str, title: str, figure: _Figure, axis: str) -> str:
    """A curve for each run that has logged any; empty where none has."""
    lines: list[Line] = []
    for i, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
        events = run.validation if kind == "validation" else run.train
        values = [figure(event) for event in events]
        window = 1 if kind == "validation" else max(1, round(SMOOTHED_SHARE * len(values)))
        lines.append(
            Line(
                name=name,
                xs=[float(event[axis]) for event in events],
                ys=smooth(values, window),
                color=STAGE_COLORS[i % len(STAGE_COLORS)],
                has_marks=kind == "validation",
            )
        )
    if not any(line.xs for line in lines):
        return ""
    try:
        chart = line_chart(
            lines,
            x_label="training step" if axis == "step" else "training time",
            y_label="loss",
            format_x=(lambda x: f"{x:,.0f}") if axis == "step" else format_seconds,
        )
    except ValueError:  # nothing but losses that are no numbers
        return ""
    about = "averaged weights" if kind == "validation" else "means over a fortieth of the run"
    return panel(title, about, chart)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )
