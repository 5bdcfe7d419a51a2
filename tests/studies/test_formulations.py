"""The formulations' grid, its ranking and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rectiflow.flow import paper_grid
from rectiflow.studies import formulations_report
from rectiflow.studies.engine import run_study
from rectiflow.studies.formulations import QUESTIONED, formulations
from rectiflow.studies.formulations_report import leaders_of
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.study import Plot, Row

WINNER, UNIFORM = QUESTIONED
SETTINGS = ((5, 5.0), (25, 5.0), (50, 1.0), (50, 5.0))


def rows_of(
    quality: dict[str, float], *, seed: int = 0, scatter: float = 0.0, num_replicates: int = 20
) -> list[Row]:
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
                redrawn = good + scatter * generator.normal(size=num_replicates)
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
    assert verdict.startswith("No fresh seed was run, so no winner is named.")
    assert f"has `{WINNER}` first of 4: 1.00 [1.00, 1.00]." in verdict
    assert "Spearman correlation of 1.00" in verdict
    opposed = {name: -good for name, good in agreeing.items()}
    verdict = study.report(rows_of(opposed)).verdict
    assert "has `edm(-1.20,1.20)` first of 4" in verdict
    assert f"`{WINNER}` is number 4 of 4 on seed 0" in verdict
    assert "Spearman correlation of -1.00" in verdict


def draw(quality: Callable[[str, int], float], names: Sequence[str]) -> list[Row]:
    """All on seed 0, the best two of it and the questioned ones again with two fresh seeds."""

    def of_seed(names: Sequence[str], seed: int) -> list[Row]:
        good = {name: quality(name, seed) for name in names}
        return rows_of(good, seed=seed, num_replicates=2)

    first = of_seed(names, 0)
    again = list(dict.fromkeys((*leaders_of(first, 2), *QUESTIONED)))
    return [*first, *of_seed(again, 1), *of_seed(again, 2)]


def test_equals_give_no_winner_and_the_seed_that_chose_flatters_no_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blank = Plot(file="blank.svg", caption="", content=b"")
    monkeypatch.setattr(formulations_report, "plot_curves", lambda *args, **kwargs: blank)
    study, names = formulations("cpu"), [*QUESTIONED, *map(str, paper_grid()[-22:])]
    generator = np.random.default_rng(0)
    num_winners, chosen, shown = 0, list[float](), list[float]()
    for _ in range(20):
        rows = draw(lambda name, seed: float(generator.normal()), names)
        report = study.report(rows)
        num_winners += "it trains best here" in report.verdict
        leaders = leaders_of(rows, 2)
        chosen += [row["graded"] for row in rows if not row["seed"] and row["cell"] in leaders]
        table = next(t for t in report.tables if t.title == "The leaders on fresh seeds")
        graded = {row[0]: row[table.header.index("graded")] for row in table.rows}
        shown += [float(graded[f"`{name}`"].split()[0]) for name in leaders]
    assert num_winners <= 1
    assert np.mean(chosen) > 1.5
    assert abs(np.mean(shown)) < 0.33  # three of its standard deviations


def test_a_winner_is_named_where_every_fresh_seed_puts_it_clearly_first() -> None:
    good = {WINNER: 9.0, UNIFORM: 1.0, "eps/linear": 2.0, "v/cos": 2.5}
    rows = draw(lambda name, seed: good[name], list(good))
    # The second is third in one setting of one seed: the seeds differ, as real ones do.
    for row in rows:
        if (row["seed"], row["formulation"], row["num_steps"]) == (2, "v/cos", 5):
            row |= {"clip_score": 0.0, "frechet": 100.0} if row["weights"] == "ema" else {}
    verdict = formulations("cpu").report(rows).verdict
    assert verdict.startswith(
        f"Over seeds 1, 2, which had no part in choosing, `{WINNER}` has the best mean rank"
    )
    assert "clear of each of the others seed by seed: it trains best here" in verdict


def test_the_verdict_rests_on_the_fresh_seeds_where_they_differ_from_the_first() -> None:
    def quality(name: str, seed: int) -> float:
        return {WINNER: 0.5, UNIFORM: 0.4, "v/cos": 0.9 if seed == 0 else 0.1}[name]

    verdict = formulations("cpu").report(draw(quality, [WINNER, UNIFORM, "v/cos"])).verdict
    assert f"`{WINNER}` has the best mean rank of the 3 that were run again, 1.00" in verdict
    assert "Seed 0 alone, by which leaders are chosen, has `v/cos` first of 3" in verdict
    assert f"`{UNIFORM}` is number 2 of 3 on fresh seeds and number 3 of 3 on seed 0" in verdict


def test_only_seeds_with_every_setting_are_averaged() -> None:
    rows = draw(lambda name, seed: 0.5 + 0.1 * seed, [WINNER, UNIFORM])
    other = [row | {"world": "full", "graded": 100.0} for row in rows]
    gone = (WINNER, 2)
    rows += [row for row in other if (row["formulation"], row["seed"]) != gone]
    rows += [
        {"cell": "gone", "formulation": WINNER, "seed": 2, "world": "full", "diverged": True},
        *(
            {"cell": "all", "formulation": "v/cos", "seed": seed, "diverged": True}
            for seed in (1, 2)
        ),
        *rows_of({"v/cos": 0.4}, num_replicates=2),
    ]
    report = formulations("cpu").report(rows)
    table = {row[0]: row for row in report.tables[2].rows}
    places = [report.tables[2].header.index(name) for name in ("seeds measured", "graded")]
    assert [table[f"`{WINNER}`"][i] for i in places] == ["1 of 2", "50.300"]
    assert [table[f"`{UNIFORM}`"][i] for i in places] == ["2 of 2", "50.325 ± 0.035"]
    assert [table["`v/cos`"][i] for i in places] == ["0 of 2", ""]
    assert "nan" not in " ".join(cell for row in table.values() for cell in row)


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
    assert "## The leaders on fresh seeds" in page
    # a finished cell keeps its model, not its checkpoints
    runs = list(tmp_path.glob("cells/*/run"))
    assert len(runs) == len({row["cell"] for row in rows})
    assert all((run / "model" / "model.json").exists() for run in runs)
    assert not any((run / "checkpoints").exists() for run in runs)
