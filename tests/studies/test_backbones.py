"""The study of backbones: its grid, its verdict on made-up numbers, and a whole small run."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from rectiflow.studies.backbones import backbones
from rectiflow.studies.backbones_report import METRICS, PAPER_ORDER, TITLES, order_by
from rectiflow.studies.engine import run_study
from rectiflow.studies.results import read_rows
from rectiflow.studies.study import Report, Row

STUDY = backbones("cpu")
#: Losses in the paper's order.
AS_PAPER = {"dit": 1.4, "uvit": 1.3, "crossdit": 1.2, "mmdit": 1.1, "mmdit3": 1.09}


def made_up(
    losses: Mapping[str, float], *, noise: float = 1e-3, early: Mapping[str, float] | None = None
) -> list[Row]:
    """Rows of the whole grid whose scores all follow the losses; `noise` differs by seed."""
    rows: list[Row] = []
    for cell in STUDY.cells():
        name, seed = cell.factors["backbone"], cell.factors["seed"]
        assert isinstance(seed, int)
        wobble = noise * (1 + list(TITLES).index(str(name))) * (-1.0, 0.0, 1.0)[seed]
        loss = losses[str(name)] + wobble
        first = (early or losses)[str(name)] + 1.0
        identity: Row = {"cell": cell.name, **cell.factors, "diverged": False}
        parts: list[Row] = [
            {"kind": "size", "depth": 2, "width": 128, "parameters": 10**6, "forward_flops": 10**7},
            {"kind": "validation", "step": 250, "ema_loss": first, "raw_loss": first},
            {"kind": "validation", "step": 500, "ema_loss": loss, "raw_loss": loss},
            {
                "kind": "samples",
                "step": 500,
                "clip_score": 2.0 - loss,
                "frechet": loss,
                "cmmd": loss,
                "graded": 2.0 - loss,
                "num_pictures": 98,
            },
        ]
        rows += [identity | part for part in parts]
    return rows


def diverged(rows: list[Row], backbone: str) -> list[Row]:
    """The same rows with all runs of a backbone diverged."""
    cells = {row["cell"]: row for row in rows if row["backbone"] == backbone}
    kept = [row for row in rows if row["backbone"] != backbone]
    return kept + [
        {name: row[name] for name in ("cell", "backbone", "matched", "seed")} | {"diverged": True}
        for row in cells.values()
    ]


def report(rows: list[Row]) -> Report:
    return STUDY.report(rows)


def test_every_backbone_runs_at_both_matches_and_the_reference_once() -> None:
    cells = STUDY.cells()
    assert len(cells) == 5 * len(STUDY.seeds) + 4 * len(STUDY.parameter_seeds)
    references = [cell for cell in cells if cell.factors["backbone"] == "mmdit"]
    assert len(references) == len(STUDY.seeds)
    assert {cell.factors["matched"] for cell in references} == {"both"}


def test_runs_of_a_seed_differ_in_nothing_but_the_backbone_and_its_rate() -> None:
    recipes = [cell.recipe for cell in STUDY.cells() if cell.factors["seed"] == 0]
    for recipe in recipes:
        assert recipe is not None
        width = recipe.backbone.hidden_dim
        assert recipe.optimizer.learning_rate * width == pytest.approx(0.4)
    assert len({(r.batch_size, r.max_steps, r.schedule, r.ema, r.seed) for r in recipes if r}) == 1


def test_the_papers_order_is_recognised() -> None:
    verdict = report(made_up(AS_PAPER)).verdict
    assert "orders DiT < UViT < CrossDiT < MM-DiT, the paper's order" in verdict
    assert "6 of the order's 6 pairs are decided as in the paper, 0 against it" in verdict
    assert "No run diverged" in verdict


def test_the_reversed_order_is_called_reversed() -> None:
    losses = {**AS_PAPER, **dict(zip(PAPER_ORDER, (1.1, 1.2, 1.3, 1.4)))}
    verdict = report(made_up(losses)).verdict
    assert "orders MM-DiT < CrossDiT < UViT < DiT, where the paper has DiT < UViT" in verdict
    assert "0 of the order's 6 pairs are decided as in the paper, 6 against it" in verdict


def test_seeds_that_scatter_leave_pairs_open() -> None:
    verdict = report(made_up(AS_PAPER, noise=1.0)).verdict
    assert "0 of the order's 6 pairs are decided as in the paper, 0 against it, each" in verdict
    assert "6 stay open over the seeds" in verdict


def test_the_order_is_of_seeds_that_all_have() -> None:
    loss = METRICS[0]
    # The third seed is a bad one, and only one of them has it.
    values = {"dit": {0: 1.0, 1: 1.0}, "mmdit": {0: 0.9, 1: 0.9, 2: 9.0}}
    assert order_by(values, loss) == ["dit", "mmdit"]
    assert order_by({"dit": {0: 1.0}, "mmdit": {1: 2.0}}, loss) == ["mmdit", "dit"]


@pytest.mark.parametrize(
    ("loss", "noise", "said"),
    [
        (1.0, 1e-3, "Three sets beat two by"),
        (1.2, 1e-3, "Three sets lose to two by"),
        (1.09, 1.0, "Whether three sets beat two stays open"),
    ],
)
def test_three_sets_against_two_follow_the_numbers(loss: float, noise: float, said: str) -> None:
    assert said in report(made_up(AS_PAPER | {"mmdit3": loss}, noise=noise)).verdict


def test_who_leads_early_is_read_from_the_first_look() -> None:
    uvit_first = report(made_up(AS_PAPER, early=AS_PAPER | {"uvit": 0.5})).verdict
    assert "after 250 steps, UViT leads, as in the paper" in uvit_first
    assert "MM-DiT, 3 sets leads, where the paper saw UViT" in report(made_up(AS_PAPER)).verdict


@pytest.mark.parametrize("backbone", ["dit", "mmdit"])
def test_a_diverged_backbone_drops_out_and_is_named(backbone: str) -> None:
    found = report(diverged(made_up(AS_PAPER), backbone))
    assert f"Runs of {TITLES[backbone]} diverged" in found.verdict
    assert "3 of the order's 3 pairs" in found.verdict


def test_nothing_but_divergence_still_makes_a_report() -> None:
    rows = made_up(AS_PAPER)
    for backbone in TITLES:
        rows = diverged(rows, backbone)
    found = report(rows)
    assert "diverged" in found.verdict
    assert not found.plots


@pytest.mark.slow  # the studies of formulations and scaling go the same way by default
def test_a_whole_small_run_leaves_a_report(tmp_path: Path) -> None:
    study = backbones("smoke")
    path = run_study(study, tmp_path / "study", command="rectiflow study backbones")
    page = (path / "README.md").read_text()
    assert "# Which backbone trains best?" in page
    assert "loss_at_equal_flops.svg" in page
    rows = read_rows(path / "metrics.parquet")
    assert len({row["cell"] for row in rows}) == len(study.cells())
    sizes = {(row["matched"], row["backbone"]): row for row in rows if row.get("kind") == "size"}
    reference = sizes["both", "mmdit"]
    for (matched, _), size in sizes.items():
        column = "parameters" if matched == "parameters" else "forward_flops"
        assert size[column] == pytest.approx(reference[column], rel=0.2)
    finals = [row for row in rows if row.get("kind") == "samples"]
    assert all(0.0 <= row["graded"] <= 1.0 and row["frechet"] > 0.0 for row in finals)
