"""The shift study end to end, and a verdict that follows the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from rectiflow.base.config import to_json
from rectiflow.base.errors import ConfigError
from rectiflow.generation.model import load_model
from rectiflow.studies.bench import PictureSet
from rectiflow.studies.engine import run_study
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.shift import shift
from rectiflow.studies.study import Row

OTHERS = {"correct": 0.1, "clip_score": 0.2, "frechet": 1.0, "cmmd": 2.0}


def verdict_of(trained: dict[float, float], sampled: dict[float, float]) -> str:
    """The verdict of two seeds with graded scores by multiplier, the second's 0.1 higher."""
    rows: list[Row] = []
    for seed in (0, 1):
        shared = {"cell": "x", "seed": seed, "diverged": False} | OTHERS
        for kind, scores in (("trained", trained), ("sampled", sampled)):
            rows += [
                shared
                | {"kind": kind, "multiplier": multiplier if kind == "trained" else 1.0}
                | {
                    "sampled": multiplier,
                    "alpha": 6 * multiplier,
                    "graded": score + (0.1 + 1e-5 * multiplier) * seed,
                }
                for multiplier, score in scores.items()
            ]
    return shift("cpu").report(rows).verdict


@pytest.mark.slow  # the studies of formulations and scaling go the same way by default
def test_smoke(tmp_path: Path) -> None:
    path = run_study(shift("smoke"), tmp_path, command="rectiflow study shift")
    page = (path / "README.md").read_text()
    for text in ("**Verdict.** Shifted in training", "| 2 (theory) | 12 |", "graded_over_shift"):
        assert text in page
    rows = read_rows(path / METRICS_FILE)
    assert {(row["kind"], row["multiplier"], row["sampled"]) for row in rows} == {
        ("trained", 1.0, 1.0),
        ("trained", 2.0, 2.0),
        ("sampled", 1.0, 2.0),
    }


def test_one_shift_serves_training_and_sampling_and_only_it_differs() -> None:
    study, own = shift("cpu"), load_model("tiny")
    recipes = [cell.recipe for cell in study.cells() if cell.factors["seed"] == 0]
    assert recipes[0] is not None
    assert recipes[0].shift.alpha == own.settings.shift
    for recipe, multiplier in zip(recipes, study.multipliers, strict=True):
        assert recipe is not None
        assert recipe.shift.alpha == pytest.approx(multiplier * own.settings.shift)
        assert replace(recipe, shift=recipes[0].shift) == recipes[0]
        assert recipe.backbone == own.backbone.config
        # By name: the grid is the same wherever the package lies.
        assert recipe.start_from == "tiny"


def test_the_grid_holds_no_path() -> None:
    for cell in shift("cpu").cells():
        assert "/" not in str(to_json(cell.recipe) if cell.recipe else "")


def test_theory_is_the_root_of_the_tokens() -> None:
    assert shift("cpu").theory == 2.0
    assert replace(shift("cpu"), resolution_px=256).theory == 4.0


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        (
            {1.0: 0.3, 2.0: 0.5, 3.0: 0.4},
            "multiplier 2 has the highest graded score, 0.550. 2, that",
        ),
        ({1.0: 0.3, 2.0: 0.5, 3.0: 0.4}, "+0.200 [+0.200, +0.200]: the shift helps."),
        ({1.0: 0.5, 2.0: 0.3, 3.0: 0.2}, "-0.200 [-0.200, -0.200]: the shift harms."),
        ({1.0: 0.5, 2.0: 0.5, 3.0: 0.5}, "2 seeds are not enough to call a difference"),
    ],
)
def test_the_verdict_follows_the_numbers(trained: dict[float, float], words: str) -> None:
    assert words in verdict_of(trained, {2.0: 0.3})


def test_the_verdict_compares_sampling_shifts_with_the_papers() -> None:
    trained = {1.0: 0.3, 2.0: 0.3}
    clear = verdict_of(trained, {1.5: 0.40, 3.0: 0.42})
    assert "from 1.5 on, less those below, are +0.110 [+0.110, +0.110]: they score more" in clear
    assert "they span 0.020 among themselves" in clear
    assert ": they score less" in verdict_of(trained, {1.5: 0.1, 3.0: 0.2})


def test_pictures_come_at_multiples_of_the_canvas() -> None:
    assert PictureSet(count=1, resolution_px=128).scale == 2
    with pytest.raises(ConfigError, match="resolution_px=96 is no multiple of the 64 px"):
        PictureSet(count=1, resolution_px=96)
