"""One self-contained report.html: scores, pictures with verdicts, curves, times, how to repeat it.

Style, drawings and pictures are inside the file; it loads nothing and runs no script, so it can be
mailed or archived. It takes values only: who calls it reads logs and folders.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from rectiflow.base.files import atomic_write
from rectiflow.evaluation.charts import (
    Line,
    format_seconds,
    interval_bar,
    line_chart,
    smooth,
    stage_bar,
)
from rectiflow.evaluation.results import Evaluation, JudgedPicture, Score, SplitScore

MOSAIC_PICTURES = 42
CARDS_PER_TASK = 8
STAGE_COLORS = tuple(f"var(--stage-{i})" for i in range(1, 8))
TASK_TITLES = {
    "single_object": "One object",
    "two_object": "Two objects",
    "counting": "Counting",
    "colors": "Colours",
    "position": "Position",
    "color_attr": "Colour binding",
    "typography": "Typography",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the walk: how long it took, and what came out in a few words."""

    name: str
    duration_s: float
    note: str


@dataclass(frozen=True, kw_only=True)
class ValidationPoint:
    """Held-out loss per level t after `step` steps, of the raw and of the averaged weights."""

    step: int
    levels: tuple[float, ...]
    raw: tuple[float, ...]
    ema: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """Pictures (PNG bytes) of the same prompts and seeds at one moment of training."""

    label: str
    pictures: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows. `pictures` holds the evaluation's files as PNG bytes."""

    title: str
    lede: str
    evaluation: Evaluation
    pictures: Mapping[str, bytes]
    tiles: tuple[tuple[str, str], ...]
    stages: tuple[Stage, ...]
    losses: tuple[tuple[int, float], ...]
    validation: tuple[ValidationPoint, ...]
    sample_prompts: tuple[str, ...]
    sample_rows: tuple[SampleRow, ...]
    facts: tuple[tuple[str, str], ...]
    recipe: Mapping[str, Any]
    commands: tuple[str, ...]
    footer: str


def write_report(path: Path | str, report: Report) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path, "w") as file:
        file.write(render_report(report))


def render_report(report: Report) -> str:
    """The page as HTML."""
    sections = (
        _header(report),
        _gallery(report),
        _scores(report.evaluation),
        _learning(report),
        _growth(report),
        _times(report.stages),
        _recipe(report),
    )
    body = "\n".join(part for part in sections if part)
    return html_page(report.title, body, footer=report.footer)


def html_page(title: str, body: str, *, footer: str) -> str:
    """A page of our style around a body, with nothing to load."""
    style = resources.files("rectiflow.evaluation").joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · rectiflow</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n"
        f"<footer>{escape(footer)}</footer>\n</main></body></html>\n"
    )


def _header(report: Report) -> str:
    score = report.evaluation.overall.seen.lenient
    shown = [p for p in _interleaved(report.evaluation.pictures) if p.file in report.pictures]
    mosaic = "".join(
        _image(report.pictures[p.file or ""], p.prompt) for p in shown[:MOSAIC_PICTURES]
    )
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in report.tiles
    )
    caption = "The first pictures of the benchmark in its own order, none chosen."
    return (
        '<header><div><p class="overline">rectiflow · report</p>'
        f'<h1>{escape(report.title)}</h1><p class="lede">{escape(report.lede)}</p></div>'
        f'<div class="score"><b>{score.mean:.2f}</b><span>overall, seen combinations<br>'
        f"95 % interval {score.low:.2f} – {score.high:.2f}</span></div></header>\n"
        + (f'<div class="mosaic">{mosaic}</div><p class="note">{caption}</p>' if mosaic else "")
        + f'<div class="tiles">{tiles}</div>'
    )


def _gallery(report: Report) -> str:
    parts: list[str] = []
    for task, scores in report.evaluation.tasks.items():
        judged = [
            p for p in report.evaluation.pictures if p.task == task and p.file in report.pictures
        ]
        seen = [p for p in judged if not p.is_held_out]
        unseen = [p for p in judged if p.is_held_out]
        num_unseen = min(len(unseen), CARDS_PER_TASK // 4)
        chosen = seen[: CARDS_PER_TASK - num_unseen] + unseen[:num_unseen]
        if not chosen:
            continue
        cards = "".join(_card(p, report.pictures[p.file or ""]) for p in chosen)
        share = f"{scores.seen.lenient.mean:.0%} right"
        if scores.unseen is not None:
            share += f", {scores.unseen.lenient.mean:.0%} on unseen combinations"
        parts.append(
            f'<div class="task"><div class="task-head"><h3>{_task_title(task)}</h3>'
            f'<span>{share}</span></div><div class="cards">{cards}</div></div>'
        )
    if not parts:
        return ""
    return (
        "<section><h2>What it draws</h2><p>The first prompts of each task, and what the oracle "
        "read back from the pixels. A green frame passes, a red one fails; point at a picture for "
        "the reason.</p>"
        f"{''.join(parts)}</section>"
    )


def _card(picture: JudgedPicture, png: bytes) -> str:
    kind, mark = ("good", "✓") if picture.is_correct else ("bad", "✗")
    said = picture.read or "nothing"
    chip = '<span class="chip">unseen</span>' if picture.is_held_out else ""
    prompt = picture.prompt.removeprefix("a photo of ")
    title = f"{picture.prompt} — read: {picture.read or 'nothing'} (seed {picture.seed})" + (
        f"; {picture.reason}" if picture.reason else ""
    )
    return (
        f'<figure class="card {kind}" title="{escape(title)}">{_image(png, picture.prompt)}'
        f"<figcaption>{escape(prompt)}{chip}"
        f'<div class="verdict"><i>{mark}</i><span>{escape(said)}</span></div>'
        "</figcaption></figure>"
    )


def _scores(evaluation: Evaluation) -> str:
    rows = [_score_row(_task_title(name), scores) for name, scores in evaluation.tasks.items()]
    rows.append(_score_row("Overall", evaluation.overall, row_class="total"))
    note = (
        f"{evaluation.world} world, {evaluation.prompt_form} prompts, "
        f"{evaluation.pictures_per_prompt} picture(s) a prompt, "
        f"{evaluation.settings}, seed {evaluation.seed}."
    )
    return (
        "<section><h2>Scores</h2><p>Lenient is GenEval’s verdict; strict wants the whole scene; "
        "graded says how near a picture comes. Seen combinations are like those trained on, "
        "unseen ones were held out. Whiskers: 95 % intervals over prompts, or over pictures where "
        "a task has no other prompts, by bootstrap or, where all are alike, Wilson’s.</p>"
        '<div class="scroll"><table><thead><tr><th>Task</th><th>Seen, lenient</th><th>Strict</th>'
        "<th>Graded</th><th>Unseen, lenient</th><th>Strict</th><th>Pictures</th></tr></thead>"
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="note">{escape(note)}</p></section>'
    )


def _score_row(title: str, scores: SplitScore, *, row_class: str = "") -> str:
    seen, unseen = scores.seen, scores.unseen
    counted = str(seen.num_pictures) + (f" + {unseen.num_pictures}" if unseen else "")
    cells = (
        title,
        _bar(seen, "var(--first)"),
        f"{seen.strict.mean:.2f}",
        f"{seen.graded.mean:.2f}",
        _bar(unseen, "var(--second)") if unseen else "<small>no held-out part</small>",
        f"{unseen.strict.mean:.2f}" if unseen else "",
        f"<small>{counted}</small>",
    )
    return f'<tr class="{row_class}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _bar(score: Score, color: str) -> str:
    interval = score.lenient
    return (
        f'<div class="bar">{interval_bar(interval, color)}<span>{interval.mean:.2f} '
        f"<small>{interval.low:.2f}–{interval.high:.2f}</small></span></div>"
    )


def _learning(report: Report) -> str:
    panels: list[str] = []
    if report.losses:
        panels.append(_loss_panel(report.losses))
    if report.validation:
        # The untrained network's loss is several times the rest and would flatten what follows.
        trained = report.validation[1:] if len(report.validation) > 2 else report.validation
        panels.append(_validation_panel(trained))
        panels.append(_levels_panel(trained))
        panels.append(_gap_panel(report.validation))
    if not panels:
        return ""
    return (
        "<section><h2>How it learned</h2><p>Flow-matching loss: the squared error of the "
        "predicted velocity. Held-out losses use the same pictures and the same noise at every "
        "point, so their curves compare like with like.</p>"
        f'<div class="charts">{"".join(panels)}</div></section>'
    )


def _loss_panel(losses: Sequence[tuple[int, float]]) -> str:
    steps = [float(step) for step, _ in losses]
    values = [loss for _, loss in losses]
    window = max(1, len(values) // 40)
    # The first values are several times the rest and would flatten what follows.
    start = min(len(values) - 1, len(values) // 50)
    chart = line_chart(
        [
            Line(
                name="each",
                xs=steps[start:],
                ys=values[start:],
                color="var(--first)",
                opacity=0.25,
                is_labeled=False,
            ),
            Line(
                name=f"{values[-1]:.3f}" if window == 1 else f"{smooth(values, window)[-1]:.3f}",
                xs=steps[start:],
                ys=smooth(values, window)[start:],
                color="var(--first)",
            ),
        ],
        x_label="training step",
        y_label="loss",
    )
    return panel("Training loss", f"Each logged value, and a mean over {window}", chart)


def _validation_panel(points: Sequence[ValidationPoint]) -> str:
    steps = [float(point.step) for point in points]
    chart = line_chart(
        [
            Line(
                name="raw",
                xs=steps,
                ys=[_mean(point.raw) for point in points],
                color="var(--second)",
                has_marks=True,
            ),
            Line(
                name="EMA",
                xs=steps,
                ys=[_mean(point.ema) for point in points],
                color="var(--first)",
                has_marks=True,
            ),
        ],
        x_label="training step",
        y_label="held-out loss",
    )
    return panel("Held-out loss", "Mean over all levels t, raw against averaged weights", chart)


def _levels_panel(points: Sequence[ValidationPoint]) -> str:
    shown = _spread(points, 5)
    lines = [
        Line(
            name=f"step {point.step:,}",
            xs=point.levels,
            ys=point.ema,
            color="var(--first)",
            opacity=0.25 + 0.75 * (i + 1) / len(shown),
            has_marks=True,
        )
        for i, point in enumerate(shown)
    ]
    chart = line_chart(
        lines,
        x_label="t (0 is data, 1 is noise)",
        y_label="held-out loss",
        format_x=lambda t: f"{t:g}",
    )
    return panel("Held-out loss by level", "Averaged weights, early to late", chart)


def _gap_panel(points: Sequence[ValidationPoint]) -> str:
    last = points[-1]
    chart = line_chart(
        [
            Line(name="raw", xs=last.levels, ys=last.raw, color="var(--second)", has_marks=True),
            Line(name="EMA", xs=last.levels, ys=last.ema, color="var(--first)", has_marks=True),
        ],
        x_label="t (0 is data, 1 is noise)",
        y_label="held-out loss",
        format_x=lambda t: f"{t:g}",
    )
    return panel("At the end, raw against EMA", f"By level, after step {last.step:,}", chart)


def panel(title: str, subtitle: str, chart: str) -> str:
    """A chart in its frame, with what it shows above."""
    return f'<div class="panel"><h3>{escape(title)}</h3><p>{escape(subtitle)}</p>{chart}</div>'


def _growth(report: Report) -> str:
    if not report.sample_rows:
        return ""
    head = "".join(
        f"<th>{escape(prompt.removeprefix('a photo of '))}</th>" for prompt in report.sample_prompts
    )
    rows = "".join(
        f"<tr><td>{escape(row.label)}</td>"
        + "".join(
            f"<td>{_image(png, prompt)}</td>"
            for png, prompt in zip(row.pictures, report.sample_prompts)
        )
        + "</tr>"
        for row in report.sample_rows
    )
    return (
        "<section><h2>From noise to meaning</h2><p>The same prompts and the same initial noise "
        "at moments of the training.</p>"
        f'<div class="scroll"><table class="growth"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _times(stages: Sequence[Stage]) -> str:
    total = sum(stage.duration_s for stage in stages)
    bar = stage_bar([(stage.name, stage.duration_s) for stage in stages], STAGE_COLORS)
    legend = "".join(
        f'<div><i style="background:{color}"></i><span>{escape(stage.name)}</span>'
        f"<b>{format_seconds(stage.duration_s)}</b><small>{escape(stage.note)}</small></div>"
        for stage, color in zip(stages, STAGE_COLORS)
    )
    return (
        f"<section><h2>What each stage took</h2><p>{format_seconds(total)} from nothing to this "
        f'page.</p>{bar}<div class="legend">{legend}</div></section>'
    )


def _recipe(report: Report) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in report.facts
    )
    commands = escape("\n".join(report.commands))
    recipe = escape(json.dumps(report.recipe, indent=2, ensure_ascii=False))
    return (
        f"<section><h2>The recipe, and how to do it again</h2><dl>{facts}</dl>"
        f"<pre>{commands}</pre><details><summary>The whole recipe as JSON</summary>"
        f"<pre>{recipe}</pre></details></section>"
    )


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _interleaved(pictures: Iterable[JudgedPicture]) -> list[JudgedPicture]:
    """Seen pictures, one of each task in turn."""
    by_task: dict[str, list[JudgedPicture]] = {}
    for picture in pictures:
        if not picture.is_held_out:
            by_task.setdefault(picture.task, []).append(picture)
    longest = max(map(len, by_task.values()), default=0)
    return [column[i] for i in range(longest) for column in by_task.values() if i < len(column)]


def _spread(points: Sequence[ValidationPoint], count: int) -> list[ValidationPoint]:
    """At most `count` points, first and last among them, evenly between."""
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


def _task_title(task: str) -> str:
    return escape(TASK_TITLES.get(task, task.replace("_", " ")))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
