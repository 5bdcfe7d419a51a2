"""The study of scaling: loss against scores, laws put to test, drops and ways; a small run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rectiflow.studies import scaling_fit
from rectiflow.studies.engine import run_study
from rectiflow.studies.results import read_rows
from rectiflow.studies.scaling import scaling
from rectiflow.studies.scaling_fit import try_laws
from rectiflow.studies.scaling_law import ScalingLaw
from rectiflow.studies.scaling_report import agreement_of, relative_drop
from rectiflow.studies.study import Row

STUDY = scaling("cpu")
PLANTED = ScalingLaw(floor=0.8, factors=(30.0, 40.0), exponents=(0.4, 0.6))
PARAMETERS = {1: 2e5, 2: 1e6, 3: 3e6, 4: 8e6}


@pytest.fixture(autouse=True)
def _few_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_fit, "NUM_REDRAWS", 5)


def quality(loss: float) -> float:
    return 2.0 - loss


def made_up(
    *,
    score: Callable[[float, int, int], float] = lambda loss, depth, step: quality(loss),
    drop: Callable[[int, int], float] = lambda depth, steps: 1.0 / (depth * steps),
    length: Callable[[int], float] = lambda depth: 60.0 - depth,
) -> list[Row]:
    """Rows of the grid whose losses follow the planted law exactly."""
    rows: list[Row] = []
    for cell in STUDY.cells():
        depth, seed = cell.factors["depth"], cell.factors["seed"]
        assert isinstance(depth, int)
        assert isinstance(seed, int)
        identity: Row = {"cell": cell.name, "depth": depth, "seed": seed, "diverged": False}
        for step in range(120, 601, 120):
            scales = np.array([[PARAMETERS[depth], 16.0 * step]])
            loss = PLANTED.loss(scales).item() + 1e-5 * seed
            value = score(loss, depth, step)
            rows.append(
                identity
                | {
                    "kind": "look",
                    "step": step,
                    "ema_loss": loss,
                    "parameters": PARAMETERS[depth],
                    "num_images": 16 * step,
                    "train_flops": 6.0 * PARAMETERS[depth] * 16 * step,
                    "graded": value,
                    "clip_score": value,
                    "frechet": -value,
                    "cmmd": -value,
                    "num_pictures": 49,
                }
            )
        for steps in STUDY.sweep_steps:
            lost = 0.0 if steps == 50 else drop(depth, steps) + 1e-4 * depth * seed
            value = 0.5 * (1.0 - lost)
            rows.append(
                identity
                | {"kind": "sweep", "num_steps": steps, "graded": value, "clip_score": value}
            )
        rows += [
            identity
            | {
                "kind": "path",
                "guidance_scale": scale,
                "path_length": length(depth) + 1e-3 * depth * seed,
                "latent_dim": 1024,
            }
            for scale in (3.0, 1.0)
        ]
    return rows


def looks(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("kind") == "look"]


def test_laws_fitted_without_the_largest_size_predict_its_planted_loss() -> None:
    data_law = try_laws(looks(made_up()))[0]
    assert data_law.law.exponents == pytest.approx(PLANTED.exponents, rel=0.05)
    assert abs(data_law.error) < 1e-3
    assert data_law.predicted.low <= data_law.measured + 1e-3


def test_a_largest_run_that_breaks_the_law_is_told() -> None:
    rows = looks(made_up())
    for row in rows:
        if row["depth"] == 4:
            row["ema_loss"] *= 1.5
    for trial in try_laws(rows):
        assert trial.error < -0.25


def test_two_sizes_fix_no_law() -> None:
    assert try_laws([row for row in looks(made_up()) if row["depth"] < 4]) == ()


def test_a_score_that_follows_the_loss_agrees_wholly() -> None:
    rows = looks(made_up())
    for score in ("graded", "clip_score", "frechet", "cmmd"):
        agreement = agreement_of(rows, score)
        assert agreement.overall == pytest.approx(1.0)
        assert set(agreement.by_size) == {1, 2, 3, 4}
        assert agreement.within_size == pytest.approx(1.0)


def test_a_score_that_knows_the_size_alone_fails_within_sizes() -> None:
    report_of = made_up(score=lambda loss, depth, step: 10.0 * depth - 1e-3 * step)
    agreement = agreement_of(looks(report_of), "graded")
    assert agreement.overall > 0.3
    assert agreement.within_size == pytest.approx(-1.0, abs=0.1)
    assert "rising scores hardly" in STUDY.report(report_of).verdict
    assert "rising scores closely" in STUDY.report(made_up()).verdict


def test_a_score_that_never_moves_is_left_undecided() -> None:
    rows = made_up(score=lambda loss, depth, step: 0.0)
    assert agreement_of(looks(rows), "graded").by_size == {}
    assert "rising scores undecidedly" in STUDY.report(rows).verdict


def test_drops_are_relative_to_the_most_steps() -> None:
    sweep = [
        {"seed": 0, "num_steps": steps, "clip_score": score}
        for steps, score in ((5, 0.45), (50, 0.5))
    ]
    assert relative_drop(sweep, "clip_score", 5) == {0: pytest.approx(10.0)}
    sweep[1]["clip_score"] = 0.0
    assert relative_drop(sweep, "clip_score", 5) == {}


def test_the_verdict_follows_drops_and_ways() -> None:
    as_paper = STUDY.report(made_up()).verdict
    assert "larger models lose less, as in the paper." in as_paper
    assert "at depth 4, shorter, as in the paper." in as_paper
    against = STUDY.report(
        made_up(drop=lambda depth, steps: 0.01 * depth, length=lambda depth: 50.0 + depth)
    ).verdict
    assert "larger models lose more." in against
    assert "at depth 4, longer." in against


def test_diverged_runs_are_named_and_break_nothing() -> None:
    rows = [row for row in made_up() if row["cell"] != "d4-s1"]
    rows.append({"cell": "d4-s1", "depth": 4, "seed": 1, "diverged": True})
    assert "Diverged: d4-s1." in STUDY.report(rows).verdict
    all_diverged = [{"cell": cell.name, **cell.factors, "diverged": True} for cell in STUDY.cells()]
    assert "Nothing was measured. Diverged: d1-s0" in STUDY.report(all_diverged).verdict


def test_a_whole_small_run_leaves_a_report(tmp_path: Path) -> None:
    study = scaling("smoke")
    path = run_study(study, tmp_path / "study", command="rectiflow study scaling")
    page = (path / "README.md").read_text()
    assert "# Does size pay" in page
    assert "loss_over_compute.svg" in page
    rows = read_rows(path / "metrics.parquet")
    found = looks(rows)
    assert {(row["depth"], row["step"]) for row in found} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    # Twice the pictures cost twice the compute.
    for depth in study.depths:
        half, whole = (row["train_flops"] for row in found if row["depth"] == depth)
        assert whole == 2 * half
    # An untrained flow hardly moves: no way is longer than noise and data lie apart.
    for row in rows:
        if row.get("kind") == "path":
            assert 0.0 <= row["path_length"] < 2 * (2 * row["latent_dim"]) ** 0.5
