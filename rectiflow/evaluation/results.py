"""What an evaluation found: scores per task with intervals, and the verdict on every picture.

Written as JSON beside the run, read again by the report. All that a score depends on is stored
with it: model, world, prompt form, guidance, steps, size, seed, numbers of prompts and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rectiflow.base.config import LATER, load_config, save_config
from rectiflow.evaluation.bootstrap import Interval
from rectiflow.generation.load_settings import LoadedLora, LoadedParts
from rectiflow.generation.settings import SamplingSettings


@dataclass(frozen=True, kw_only=True)
class Score:
    """Three readings of the same pictures.

    `lenient` is GenEval's verdict (extra objects are forgiven outside counting), `strict` wants
    the whole scene to match, `graded` in [0, 1] says how near the nearest acceptable scene is.
    """

    num_prompts: int
    num_pictures: int
    lenient: Interval
    strict: Interval
    graded: Interval


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """Scores on combinations like those trained on, and on combinations held out of training."""

    seen: Score
    unseen: Score | None


@dataclass(frozen=True, kw_only=True)
class JudgedPicture:
    """One picture's verdict: what was asked, what the oracle read, what it makes of it."""

    task: str
    is_held_out: bool
    prompt: str
    seed: int
    is_correct: bool
    is_strict: bool
    graded: float
    reason: str
    read: str
    file: str | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model on one benchmark; `overall` is the unweighted mean over tasks.

    `parts`, `loras`, `quantization` and `is_compiled` are of the model, as pictures' metadata say.
    """

    benchmark: str
    model: str
    world: str
    prompt_form: str
    settings: SamplingSettings
    per_task: int
    pictures_per_prompt: int
    seed: int
    overall: SplitScore
    tasks: dict[str, SplitScore]
    duration_s: float
    pictures: tuple[JudgedPicture, ...]
    parts: LoadedParts | None = field(default=None, metadata=LATER)
    loras: tuple[LoadedLora, ...] = field(default=(), metadata=LATER)
    quantization: str | None = field(default=None, metadata=LATER)
    is_compiled: bool = field(default=False, metadata=LATER)

    @property
    def drawn_by(self) -> str:
        """The model, and what was changed in it."""
        changes = [f"{lora.name} by {lora.weight:g}" for lora in self.loras]
        changes += [] if self.quantization is None else [f"in {self.quantization}"]
        changes += ["compiled"] * self.is_compiled
        return ", ".join([self.model, *changes])


def write_evaluation(path: Path | str, evaluation: Evaluation) -> None:
    """Write an evaluation as JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    save_config(path, evaluation)


def read_evaluation(path: Path | str) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        UserError: the file cannot be read or is not an evaluation.
    """
    return load_config(path, Evaluation)


def format_table(evaluation: Evaluation) -> str:
    """The scores as a table for a terminal."""
    rows = [("task", "prompts", "pictures", "lenient", "strict", "graded")]
    for is_seen in (True, False):
        split = "seen" if is_seen else "unseen"
        for name, scores in (*evaluation.tasks.items(), ("overall", evaluation.overall)):
            score = scores.seen if is_seen else scores.unseen
            if score is not None:
                counted = (str(score.num_prompts), str(score.num_pictures))
                readings = (str(score.lenient), str(score.strict), f"{score.graded.mean:.2f}")
                rows.append((f"{name} ({split})", *counted, *readings))
    return text_table(rows) + (
        f"\n{evaluation.drawn_by} on {evaluation.benchmark} ({evaluation.world}, "
        f"{evaluation.prompt_form} prompts): {evaluation.settings}, "
        f"{evaluation.pictures_per_prompt} picture(s) a prompt, "
        f"seed {evaluation.seed}; in brackets 95 % intervals over prompts, or over pictures where "
        "a task has no other prompts, by bootstrap or, where all are alike, Wilson's"
    )


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows for a terminal, the first their header; the first column left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths))
    )
    return "  ".join((first, *rest)).rstrip()
