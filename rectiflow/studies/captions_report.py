"""What the captions' numbers say: table 4 task by task, and whether the mix gains as the paper's.

Source: arXiv 2403.03206, table 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rectiflow.studies.comparison import Difference, paired_difference, spread_of
from rectiflow.studies.plots import Bars, plot_bars
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.captions import Captions

TERSE, FULL, MIXED = "terse", "full", "half-half"
#: The paper's table 4: accuracy after training on original captions, and on half of each.
PAPER = {
    "color_attr": (0.1175, 0.2475),
    "colors": (0.7154, 0.6809),
    "position": (0.0650, 0.1800),
    "counting": (0.3344, 0.4156),
    "single_object": (0.9500, 0.9375),
    "two_object": (0.4141, 0.5253),
}
PAPER_OVERALL = (0.4327, 0.4978)
_OVERALL, _GRADED = "overall (six tasks)", "graded score (seven tasks)"


def report_captions(study: Captions, rows: Sequence[Row]) -> Report:
    """Table, figure and verdict."""
    scores = _Scores([row for row in rows if not row["diverged"]])
    diverged = [row["cell"] for row in rows if row["diverged"]]
    return Report(
        setting=(
            f"MM-DiT of depth {study.depth}, {study.num_steps} steps of 16 pictures of the world "
            f"`{study.world}` ({study.num_pictures:,} pictures); only the captions differ. "
            f"Averaged weights, {study.setting}, {study.per_task} terse prompts of each of the "
            f"benchmark's tasks. Seeds {study.seeds}."
        ),
        verdict=_verdict(scores, diverged),
        tables=(_table(scores),),
        plots=_figure(scores),
    )


class _Scores:
    """Accuracy by measure, captions and seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._values: dict[tuple[str, str, int], float] = {}
        for row in rows:
            tasks = {task: float(row[f"correct {task}"]) for task in (*PAPER, "typography")}
            measures = tasks | {
                _OVERALL: float(np.mean([tasks[task] for task in PAPER])),
                _GRADED: float(row["graded"]),
            }
            for measure, value in measures.items():
                self._values[measure, row["captions"], row["seed"]] = value
        self.seeds = sorted({row["seed"] for row in rows})
        self.captions = [c for c in (TERSE, FULL, MIXED) if c in {row["captions"] for row in rows}]

    def of(self, measure: str, captions: str) -> list[float]:
        """One value for each seed that did not diverge."""
        return [
            self._values[measure, captions, seed]
            for seed in self.seeds
            if (measure, captions, seed) in self._values
        ]

    def difference(self, measure: str, first: str, second: str) -> Difference | None:
        """first − second over the seeds that both have; None where they share none."""
        shared = [
            seed
            for seed in self.seeds
            if {(measure, first, seed), (measure, second, seed)} <= self._values.keys()
        ]
        if not shared:
            return None
        return paired_difference(
            [self._values[measure, first, seed] for seed in shared],
            [self._values[measure, second, seed] for seed in shared],
        )


def _table(scores: _Scores) -> Table:
    paper = PAPER | {_OVERALL: PAPER_OVERALL}
    return Table(
        title="GenEval's tasks by captions (table 4)",
        header=(
            "task",
            *(f"{captions} captions" for captions in scores.captions),
            f"{MIXED} − {TERSE}",
            "paper, original",
            "paper, 50/50",
        ),
        rows=tuple(
            (
                measure,
                *(str(spread_of(scores.of(measure, captions))) for captions in scores.captions),
                str(scores.difference(measure, MIXED, TERSE) or ""),
                *(f"{value:.3f}" for value in paper.get(measure, ())),
                *("",) * (2 * (measure not in paper)),
            )
            for measure in (*PAPER, _OVERALL, "typography", _GRADED)
        ),
        note=(
            "Share of pictures that the oracle finds correct by GenEval's rules: mean ± standard "
            "deviation over seeds, and the mean difference seed by seed with its 95 % interval "
            "(Student's t). The paper compares captions found beside pictures with a half of "
            "synthetic ones, on pictures of the real world."
        ),
    )


def _verdict(scores: _Scores, diverged: Sequence[str]) -> str:
    gain = scores.difference(_OVERALL, MIXED, TERSE)
    parts: list[str] = []
    if gain is None:
        parts.append("No seed finished with both terse and mixed captions; nothing can be said.")
    else:
        paper_gain = PAPER_OVERALL[1] - PAPER_OVERALL[0]
        parts += [
            f"Over GenEval's six tasks half-and-half minus terse captions is "
            f"{gain.describe(more='the mix teaches more', less='the mix teaches less')}. "
            f"The paper has {paper_gain:+.3f}.",
            _agreement(gain, paper_gain),
            _by_task(scores),
        ]
    for captions, other in ((FULL, TERSE), (MIXED, FULL)):
        difference = scores.difference(_OVERALL, captions, other)
        if difference is not None:
            more, less = f"{captions} is better", f"{other} is better"
            parts.append(f"{captions} minus {other}: {difference.describe(more=more, less=less)}.")
    if diverged:
        parts.append(f"Diverged: {', '.join(diverged)}.")
    return " ".join(parts)


def _agreement(gain: Difference, paper_gain: float) -> str:
    if not gain.is_clear:
        return "At this size the paper's gain is neither confirmed nor refuted."
    if gain.mean * paper_gain > 0:
        return "That agrees with the paper in direction."
    return "That disagrees with the paper."


def _by_task(scores: _Scores) -> str:
    gains = {task: scores.difference(task, MIXED, TERSE) for task in PAPER}
    ahead = [task for task, gain in gains.items() if gain and gain.is_clear and gain.mean > 0]
    behind = [task for task, gain in gains.items() if gain and gain.is_clear and gain.mean < 0]
    theirs = [task for task, (before, after) in PAPER.items() if after > before]
    return (
        f"By task, each with its own 95 % interval over seeds, the mix is ahead in "
        f"{_listed(ahead)} and behind in {_listed(behind)}; in the paper it is ahead in "
        f"{_listed(theirs)}."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _figure(scores: _Scores) -> tuple[Plot, ...]:
    measures = (*PAPER, "typography")
    bars: dict[str, Bars] = {}
    for captions in scores.captions:
        spreads = [spread_of(scores.of(measure, captions)) for measure in measures]
        # A single seed has no spread to show.
        has_spread = all(spread.num > 1 for spread in spreads)
        bars[captions] = Bars(
            heights=[spread.mean for spread in spreads],
            low=[spread.mean - spread.std for spread in spreads] if has_spread else None,
            high=[spread.mean + spread.std for spread in spreads] if has_spread else None,
        )
    return (
        plot_bars(
            "accuracy_by_task.svg",
            measures,
            bars,
            caption="Accuracy by task and captions, ± one standard deviation over seeds",
            y_label="share correct",
        ),
    )
