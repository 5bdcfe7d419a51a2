"""The encoders study end to end, and a verdict that follows the numbers."""

from pathlib import Path

import pytest

from rectiflow.base.errors import UserError
from rectiflow.evaluation.bootstrap import wilson_interval
from rectiflow.generation.model import load_model
from rectiflow.shapeworld.scene import TASKS
from rectiflow.studies.comparison import ScoredPicture, win_rate
from rectiflow.studies.encoders import SUBSETS, Encoders, encoders
from rectiflow.studies.engine import run_study
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.study import Row

NUM = 40


def verdict_of(graded: dict[str, tuple[float, float]]) -> str:
    return encoders("cpu").report(rows_of(graded)).verdict


def rows_of(graded: dict[str, tuple[float, float]]) -> list[Row]:
    """Rows where every picture of a set has one score: GenEval's tasks, typography.

    Sets that are not named score as all three encoders do, 0.5.
    """
    rows: list[Row] = []
    for name in SUBSETS:
        shared = {"cell": name, "encoders": name, "diverged": False}
        rows.append(
            shared
            | {"kind": "pictures", "digest": "0" * 64, "world": "small", "guidance_scale": 3.0}
            | {"graded": 0.5, "clip_score": 0.2, "cmmd": 1.0}
        )
        following, typography = graded.get(name, (0.5, 0.5))
        rows += [
            shared
            | {"kind": "picture", "task": task, "prompt": f"{task} {i}", "is_correct": i % 2 == 0}
            | {"graded": typography if task == "typography" else following}
            for task in TASKS
            for i in range(NUM)
        ]
    return rows


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("without T5", "Drawing diverged with without T5. Without any encoder it is 50%"),
        ("none", "Drawing diverged with none. Without T5, pictures win 50%"),
        ("all", "Drawing diverged with all: nothing can be compared."),
    ],
)
def test_what_diverged_is_named_and_breaks_nothing(name: str, words: str) -> None:
    rows = [row for row in rows_of({}) if row["encoders"] != name]
    rows.append({"cell": name, "encoders": name, "diverged": True})
    assert words in encoders("cpu").report(rows).verdict


def test_prompts_that_are_all_there_is_are_not_redrawn() -> None:
    """Of five prompts asked ten times each, pictures are the sample."""
    pictures = [
        ScoredPicture(task="one", prompt=str(i % 5), score=float(i % 5 > 0)) for i in range(50)
    ]
    half = [ScoredPicture(task="one", prompt=p.prompt, score=0.5) for p in pictures]
    few = win_rate(pictures, half)
    assert few == wilson_interval(0.8, 50)


@pytest.mark.slow  # the studies of formulations and scaling go the same way by default
def test_smoke(tmp_path: Path) -> None:
    path = run_study(encoders("smoke"), tmp_path, command="rectiflow study encoders")
    page = (path / "README.md").read_text()
    for text in ("**Verdict.** Without T5", "| without T5 |", "46% and 38%", "| none |"):
        assert text in page
    rows = read_rows(path / METRICS_FILE)
    assert {row["encoders"] for row in rows if row["kind"] == "picture"} == set(SUBSETS)
    prompts = [
        tuple(row["prompt"] for row in rows if row["kind"] == "picture" and row["encoders"] == name)
        for name in SUBSETS
    ]
    assert len(set(prompts)) == 1


def test_the_grid_does_not_depend_on_where_the_model_lies() -> None:
    assert encoders("cpu").model == "tiny"
    assert all(cell.recipe is None for cell in encoders("cpu").cells())


@pytest.mark.parametrize(
    ("without_t5", "words"),
    [
        ((0.5, 0.1), "Typography needs T5 more than prompt following does, as in the paper."),
        ((0.1, 0.5), "Prompt following needs T5 more than typography does, against the paper."),
        ((0.5, 0.5), "that typography needs T5 more is not shown here"),
        ((0.9, 0.9), "they gain"),
    ],
)
def test_the_verdict_follows_the_numbers(without_t5: tuple[float, float], words: str) -> None:
    assert words in verdict_of({"without T5": without_t5})


def test_the_verdict_says_which_encoders_count_more() -> None:
    assert "loses more by leaving out both CLIP encoders" in verdict_of(
        {"without CLIP": (0.1, 0.1)}
    )
    assert "loses more by leaving out T5" in verdict_of({"without T5": (0.1, 0.1)})


def test_a_model_of_another_world_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from rectiflow.studies import encoders as module
    from rectiflow.studies.bench import Bench

    foreign = replace(load_model("tiny"), world=None)
    monkeypatch.setattr(module, "load_model", lambda _, settings: foreign)
    study = Encoders(per_task=1)
    with pytest.raises(UserError, match="was not trained on an embedded world"):
        study.run(study.cells()[0], Bench(tmp_path), tmp_path)
