"""The formulations' grid, its ranking and its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rectiflow.flow import paper_grid
from rectiflow.studies.engine import run_study
from rectiflow.studies.formulations import QUESTIONED, formulations
from rectiflow.studies.formulations_report import leaders_of
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.study import Row

WINNER, UNIFORM = QUESTIONED
SETTINGS = ((5, 5.0), (25, 5.0), (50, 1.0), (50, 5.0))


def rows_of(quality: dict[str, float], *, seed: int = 0, scatter: float = 0.0) -> list[Row]:
    """Made-up rows in which each formulation has a quality, NaN for one that diverged."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    for name, good in quality.items():
        factors = {"cell": name, "formulation": name, "world": "small", "seed": seed}
        if np.isnan(good):
            rows.append(factors | {"diverged": True})
            continue
        for weights in ("ema", "raw"):
            for num_steps, scale in SETTINGS:
                redrawn = good + scatter * generator.normal(size=20)
                rows.append(
                    factors
                    | {
                        "diverged": False,
                        "kind": "samples",
                        "step": 1,
                        "weights": weights,
                        "num_steps": num_steps,
                        "guidance_scale": scale,
                        "clip_score": good,
                        "clip_score_replicates": redrawn.tolist(),
                        "frechet": 100.0 - good,
                        "frechet_replicates": (100.0 - redrawn).tolist(),
                        "cmmd": 1.0,
                        "graded": good,
                        "correct": 0.5,
                        "num_pictures": 7,
                        "num_reference": 70,
                    }
                )
    return rows


def test_the_grid_at_every_scale_but_smoke_is_the_papers() -> None:
    for scale in ("cpu", "gpu"):
        study = formulations(scale)
        assert study.formulations == tuple(map(str, paper_grid()))
        assert len(study.cells()) == 61 * len(study.worlds)
        assert len({cell.name for cell in study.cells()}) == len(study.cells())
        for cell in study.cells():
            assert cell.recipe is not None
            assert str(cell.recipe.formulation) == cell.factors["formulation"]


def test_leaders_are_the_best_and_the_questioned_are_always_repeated() -> None:
    rows = rows_of({WINNER: 0.1, UNIFORM: 0.2, "eps/linear": 0.9, "v/cos": 0.5})
    assert leaders_of(rows, 2) == ["eps/linear", "v/cos"]
    study = formulations("smoke")
    again = study.second_round(rows_of({WINNER: 0.1, UNIFORM: 0.2, "eps/linear": 0.9}))
    assert {cell.factors["formulation"] for cell in again} == {WINNER, UNIFORM, "eps/linear"}
    assert {cell.factors["seed"] for cell in again} == {1}


def test_the_verdict_follows_the_numbers() -> None:
    study = formulations("cpu")
    agreeing = {WINNER: 0.9, "eps/linear": 0.8, UNIFORM: 0.7, "edm(-1.20,1.20)": 0.1}
    verdict = study.report(rows_of(agreeing)).verdict
    assert verdict.startswith(f"`{WINNER}` has the best mean rank here, 1.00 [1.00, 1.00], of 4.")
    assert "Spearman correlation of 1.00" in verdict
    opposed = {name: -good for name, good in agreeing.items()}
    verdict = study.report(rows_of(opposed)).verdict
    assert verdict.startswith("`edm(-1.20,1.20)` has the best mean rank here")
    assert f"`{WINNER}` is number 4" in verdict
    assert "Spearman correlation of -1.00" in verdict


def test_a_diverged_formulation_is_named_and_last() -> None:
    study = formulations("cpu")
    report = study.report(rows_of({WINNER: 0.9, UNIFORM: float("nan"), "eps/linear": 0.2}))
    assert "Diverged: rf." in report.verdict
    ranks = report.tables[0]
    assert [row[1] for row in ranks.rows] == [f"`{WINNER}`", "`eps/linear`", "`rf`"]


def test_intervals_widen_with_what_redrawing_moves() -> None:
    quality = {WINNER: 0.55, UNIFORM: 0.5, "eps/linear": 0.45}
    study = formulations("cpu")
    sure = study.report(rows_of(quality)).tables[0].rows
    unsure = study.report(rows_of(quality, scatter=0.3)).tables[0].rows
    assert all("[1.00, 1.00]" in row[2] for row in sure[:1])
    assert all("[1.00, 1.00]" not in row[2] for row in unsure[:1])


def test_smoke_runs_from_end_to_end_with_two_workers(tmp_path: Path) -> None:
    study = formulations("smoke")
    path = run_study(study, tmp_path, command="rectiflow study formulations", num_workers=2)
    rows = read_rows(path / METRICS_FILE)
    assert {row["formulation"] for row in rows} == set(study.formulations)
    assert {row["seed"] for row in rows} == {0, 1}
    samples = [row for row in rows if row.get("kind") == "samples"]
    assert {row["weights"] for row in samples} == {"ema", "raw"}
    for row in samples:
        assert row["num_pictures"] == 7
        assert row["num_reference"] == 35
        assert -1.0 <= row["clip_score"] <= 1.0
        assert row["frechet"] > 0.0
    page = (path / "README.md").read_text()
    assert "## Mean ranks (table 1)" in page
    assert "## The leaders with 2 seeds" in page
    # a finished cell keeps its model, not its checkpoints
    runs = list(tmp_path.glob("cells/*/run"))
    assert len(runs) == len({row["cell"] for row in rows})
    assert all((run / "model" / "model.json").exists() for run in runs)
    assert not any((run / "checkpoints").exists() for run in runs)
