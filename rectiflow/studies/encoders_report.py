"""What the encoders' numbers say: accuracy by task and win rates against all three, as in figure 9.

Prompt following is GenEval's six tasks, typography the seventh. Source: arXiv 2403.03206, section
5.3.3: without T5 the paper's pictures win 46 % in prompt following and 38 % in typography.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rectiflow.evaluation.bootstrap import Interval, bootstrap_mean_of_strata
from rectiflow.studies.comparison import ScoredPicture, all_there_is, win_rate
from rectiflow.studies.plots import Bars, plot_bars
from rectiflow.studies.study import Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.encoders import Encoders

ALL, NO_T5, T5_ALONE, NONE = "all", "without T5", "without CLIP", "none"
TYPOGRAPHY = "typography"
#: Win rates against all encoders in the paper: prompt following, typography.
PAPER_WITHOUT_T5 = (0.46, 0.38)


def report_encoders(study: Encoders, rows: Sequence[Row]) -> Report:
    """Tables, figure and verdict."""
    sets = [row for row in rows if row.get("kind") == "pictures"]
    pictures = {
        row["encoders"]: [p for p in rows if p.get("kind") == "picture" and _of(p, row)]
        for row in sets
    }
    diverged = [str(row["encoders"]) for row in rows if row["diverged"]]
    if ALL not in pictures:
        return Report(
            setting=f"The model `{study.model}`; nothing is trained here.",
            verdict=f"Drawing diverged with {', '.join(diverged)}: nothing can be compared.",
        )
    tasks = list(dict.fromkeys(p["task"] for p in pictures[ALL]))
    wins = {
        name: {
            "prompt following": _wins(pictures, name, [t for t in tasks if t != TYPOGRAPHY]),
            TYPOGRAPHY: _wins(pictures, name, [TYPOGRAPHY]),
        }
        for name in pictures
        if name != ALL
    }
    accuracy = {
        name: {task: _accuracy(shown, task) for task in tasks} for name, shown in pictures.items()
    }
    any_row = sets[0]
    return Report(
        setting=(
            f"The model `{study.model}` (weights {any_row['digest'][:12]}…), trained on the world "
            f"`{any_row['world']}`; nothing is trained here. {study.num_steps} steps, CFG "
            f"{any_row['guidance_scale']:g}, {study.per_task} pictures a task, the same prompts "
            "and noise for every set of encoders. An encoder that is left out gives zeros, in the "
            "prompt and in what guidance contrasts with."
        ),
        verdict=_verdict(wins, diverged),
        tables=(_win_table(wins), _accuracy_table(accuracy, sets)),
        plots=(
            plot_bars(
                "accuracy_by_task.svg",
                tasks,
                {
                    name: Bars(
                        heights=[by_task[task].mean for task in tasks],
                        low=[by_task[task].low for task in tasks],
                        high=[by_task[task].high for task in tasks],
                    )
                    for name, by_task in accuracy.items()
                },
                caption="Accuracy by task and encoders, 95 % intervals",
                y_label="share correct",
            ),
        ),
    )


def _of(picture: Row, pictures: Row) -> bool:
    return picture["encoders"] == pictures["encoders"]


def _wins(pictures: dict[str, list[Row]], name: str, tasks: Sequence[str]) -> Interval:
    ours, all_three = (
        [
            ScoredPicture(task=p["task"], prompt=p["prompt"], score=p["graded"])
            for p in pictures[encoders]
            if p["task"] in tasks
        ]
        for encoders in (name, ALL)
    )
    return win_rate(ours, all_three)


def _accuracy(pictures: Sequence[Row], task: str) -> Interval:
    by_prompt: dict[str, list[float]] = {}
    for picture in pictures:
        if picture["task"] == task:
            by_prompt.setdefault(picture["prompt"], []).append(float(picture["is_correct"]))
    groups = {task: list(by_prompt.values())}
    return bootstrap_mean_of_strata(groups, exhausted=all_there_is(groups))


def _win_table(wins: dict[str, dict[str, Interval]]) -> Table:
    return Table(
        title="Win rates against all encoders (figure 9)",
        header=("encoders", "prompt following", TYPOGRAPHY, "paper"),
        rows=tuple(
            (
                name,
                _percent(rates["prompt following"]),
                _percent(rates[TYPOGRAPHY]),
                f"{PAPER_WITHOUT_T5[0]:.0%} and {PAPER_WITHOUT_T5[1]:.0%}" if name == NO_T5 else "",
            )
            for name, rates in wins.items()
        ),
        note=(
            "How often a picture has a higher graded score than that of the same prompt and noise "
            "with all encoders, ties counted half; 95 % bootstrap intervals over prompts, over "
            "pictures where a task has no further prompts. The "
            "paper's are votes of people, on long prompts of the real world."
        ),
    )


def _accuracy_table(accuracy: dict[str, dict[str, Interval]], sets: Sequence[Row]) -> Table:
    tasks = list(accuracy[ALL])
    metrics = {row["encoders"]: row for row in sets}
    return Table(
        title="Accuracy by task",
        header=("encoders", *tasks, "graded", "CLIP score", "CMMD"),
        rows=tuple(
            (
                name,
                *(str(by_task[task]) for task in tasks),
                f"{metrics[name]['graded']:.3f}",
                f"{metrics[name]['clip_score']:.3f}",
                f"{metrics[name]['cmmd']:.2f}",
            )
            for name, by_task in accuracy.items()
        ),
        note=(
            "Share of pictures that the oracle finds correct by GenEval's rules, 95 % intervals "
            "over prompts, over pictures where a task has no further prompts. The CLIP score is "
            "measured with the embedded CLIP-G text encoder, one "
            "of those that are left out."
        ),
    )


def _verdict(wins: dict[str, dict[str, Interval]], diverged: Sequence[str]) -> str:
    parts = [f"Drawing diverged with {', '.join(diverged)}."] if diverged else []
    if NO_T5 in wins:
        following, typography = wins[NO_T5]["prompt following"], wins[NO_T5][TYPOGRAPHY]
        parts += [
            f"Without T5, pictures win {_percent(following)} in prompt following, where "
            f"{_against_half(following)} (paper: {PAPER_WITHOUT_T5[0]:.0%}), and "
            f"{_percent(typography)} in typography, where {_against_half(typography)} (paper: "
            f"{PAPER_WITHOUT_T5[1]:.0%}).",
            _gap(following, typography),
        ]
        if T5_ALONE in wins:
            parts.append(_which_more(following, wins[T5_ALONE]["prompt following"]))
    if NONE in wins:
        parts.append(f"Without any encoder it is {_percent(wins[NONE]['prompt following'])}.")
    return " ".join(parts)


def _which_more(without_t5: Interval, without_clip: Interval) -> str:
    if not _apart(without_t5, without_clip):
        return (
            f"Without both CLIP encoders it is {_percent(without_clip)} in prompt following, not "
            "clearly different from leaving out T5."
        )
    loses_more = "T5" if without_t5.mean < without_clip.mean else "both CLIP encoders"
    return (
        f"Prompt following loses more by leaving out {loses_more}: without CLIP it wins "
        f"{_percent(without_clip)}."
    )


def _gap(following: Interval, typography: Interval) -> str:
    if not _apart(following, typography):
        return "The two intervals overlap: that typography needs T5 more is not shown here."
    if typography.mean < following.mean:
        return "Typography needs T5 more than prompt following does, as in the paper."
    return "Prompt following needs T5 more than typography does, against the paper."


def _apart(one: Interval, other: Interval) -> bool:
    return one.high < other.low or other.high < one.low


def _against_half(rate: Interval) -> str:
    if rate.high < 0.5:
        return "they lose"
    return "they gain" if rate.low > 0.5 else "no loss is shown"


def _percent(rate: Interval) -> str:
    return f"{rate.mean:.0%} [{rate.low:.0%}, {rate.high:.0%}]"
