"""The captions study end to end, and a verdict that follows the numbers."""

from pathlib import Path

import pytest

from rectiflow.shapeworld.scene import TASKS
from rectiflow.studies.captions import MIXES, captions
from rectiflow.studies.engine import run_study
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.study import Report, Row


def report_of(accuracy: dict[str, tuple[float, ...]]) -> Report:
    """A report where all tasks have the same accuracy, by captions and seed."""
    rows: list[Row] = [
        {"cell": f"{name}-s{seed}", "captions": name, "seed": seed, "diverged": False}
        | {f"correct {task}": value for task in TASKS}
        | {"graded": value}
        for name, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    return captions("cpu").report(rows)


@pytest.mark.slow  # the studies of formulations and scaling go the same way by default
def test_smoke(tmp_path: Path) -> None:
    path = run_study(captions("smoke"), tmp_path, command="rectiflow study captions")
    page = (path / "README.md").read_text()
    for text in ("**Verdict.**", "| color_attr |", "half-half − terse", "accuracy_by_task.svg"):
        assert text in page
    rows = read_rows(path / METRICS_FILE)
    assert {(row["captions"], row["seed"]) for row in rows} == {
        (name, seed) for name in MIXES for seed in (0, 1)
    }
    assert all(0.0 <= row["correct position"] <= 1.0 for row in rows)


def test_only_the_captions_differ() -> None:
    first, *others = [cell.recipe for cell in captions("cpu").cells() if cell.factors["seed"] == 0]
    assert first is not None
    for recipe in others:
        assert recipe is not None
        assert recipe.caption_mix != first.caption_mix
        assert recipe.backbone == first.backbone
        assert (recipe.seed, recipe.max_steps) == (first.seed, first.max_steps)


@pytest.mark.parametrize(
    ("mixed", "words"),
    [
        ((0.5, 0.6, 0.71), "the mix teaches more. The paper has +0.065. That agrees"),
        ((0.1, 0.2, 0.31), "the mix teaches less. The paper has +0.065. That disagrees"),
        ((0.1, 0.4, 0.9), "neither confirmed nor refuted"),
    ],
)
def test_the_verdict_follows_the_numbers(mixed: tuple[float, ...], words: str) -> None:
    report = report_of({"terse": (0.3, 0.4, 0.5), "full": (0.3, 0.4, 0.5), "half-half": mixed})
    assert words in report.verdict


def test_diverged_runs_are_named_and_left_out() -> None:
    study = captions("cpu")
    rows: list[Row] = [
        {"cell": "terse-s0", "captions": "terse", "seed": 0, "diverged": True},
        {"cell": "half-half-s0", "captions": "half-half", "seed": 0, "diverged": False}
        | {f"correct {task}": 0.5 for task in TASKS}
        | {"graded": 0.5},
    ]
    verdict = study.report(rows).verdict
    assert "No seed finished with both" in verdict
    assert "Diverged: terse-s0." in verdict
