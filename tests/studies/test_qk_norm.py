"""The study of QK-norm: its grid, its verdict on made-up numbers, and a whole small run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rectiflow.base.errors import ConfigError, DivergedError
from rectiflow.studies.bench import Bench
from rectiflow.studies.engine import run_study
from rectiflow.studies.qk_norm import QKNorm, qk_norm
from rectiflow.studies.qk_norm_report import outcomes
from rectiflow.studies.results import read_rows
from rectiflow.studies.study import Row

STUDY = qk_norm("cpu")
CALM = (1.0, 0.9, 0.8)


def made_up(
    study: QKNorm = STUDY,
    *,
    plain: Sequence[float] = CALM,
    normed: Sequence[float] = CALM,
    plain_logits: Sequence[float] = (5.0, 6.0, 90.0),
) -> list[Row]:
    """Rows of the grid: held-out losses over the looks, and largest logits by block."""
    rows: list[Row] = []
    for cell in study.cells():
        use_qk_norm = cell.factors["qk_norm"]
        logits = [4.0, 5.0, 6.0] if use_qk_norm else list(plain_logits)
        identity: Row = {"cell": cell.name, **cell.factors, "diverged": False}
        for look, loss in enumerate(normed if use_qk_norm else plain):
            step = 50 * (look + 1)
            grown = [logit * (look + 1) / 3 for logit in logits]
            parts: list[Row] = [
                {
                    "kind": "attention",
                    "step": step,
                    "largest_logits": grown,
                    "entropies": [2.0, 1.5, 1.0],
                },
                {"kind": "training", "step": step, "loss": loss, "gradient_norm": 1.0},
                {"kind": "validation", "step": step, "ema_loss": loss, "raw_loss": loss},
            ]
            rows += [identity | part for part in parts]
    return rows


def with_diverged(rows: list[Row], *, qk_norm: bool, keep: bool) -> list[Row]:
    """The same rows with the runs of one kind diverged, with or without what was seen of them."""
    marks = {
        row["cell"]: {name: row[name] for name in ("cell", "qk_norm", "rate", "precision", "seed")}
        for row in rows
        if row["qk_norm"] == qk_norm
    }
    kept = [row for row in rows if keep or row["cell"] not in marks]
    return kept + [mark | {"diverged": True} for mark in marks.values()]


def test_pairs_of_runs_differ_in_the_norm_alone() -> None:
    cells = STUDY.cells()
    assert len(cells) == 6
    for plain, normed in zip(cells[::2], cells[1::2], strict=True):
        assert plain.recipe is not None
        assert normed.recipe is not None
        changed = replace(plain.recipe.backbone, use_qk_norm=True)
        assert replace(plain.recipe, backbone=changed) == normed.recipe


def test_the_grid_is_the_same_on_every_machine() -> None:
    assert {cell.factors["precision"] for cell in STUDY.cells()} == {"fp32"}
    assert {c.factors["precision"] for c in qk_norm("gpu").cells()} == {"fp32", "bf16"}


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="depth is 2; give at least 3"):
        replace(STUDY, depth=2)


def test_calm_runs_do_not_count_as_a_confirmation() -> None:
    verdict = STUDY.report(made_up()).verdict
    assert "do not put the paper's claim of stability to test" in verdict
    assert "without the norm, 15.0 times the 6.0 with it" in verdict
    assert "In 3 of 3 runs without the norm the largest logit lies in the later half" in verdict


STORMY = (1.0, 0.8, 1.5)
SIX_PAIRS = replace(STUDY, seeds=(0, 1))


def test_the_verdict_follows_who_becomes_unstable() -> None:
    verdict = SIX_PAIRS.report(made_up(SIX_PAIRS, plain=STORMY)).verdict
    assert "QK-norm stabilises, as in the paper: 6 of 6 runs" in verdict
    assert "6 became unstable only without it and 0 only with it" in verdict
    verdict = SIX_PAIRS.report(made_up(SIX_PAIRS, normed=STORMY)).verdict
    assert "destabilises here, against the paper" in verdict


def test_few_pairs_and_equals_leave_stability_open() -> None:
    # All three pairs the same way: a coin does that in one of four trials.
    verdict = STUDY.report(made_up(plain=STORMY)).verdict
    assert "Whether QK-norm stabilises these runs leave open: 3 of 3 runs" in verdict
    assert "p = 0.25" in verdict
    one = [
        row if row["rate"] == STUDY.rates[-1] else calm
        for row, calm in zip(made_up(plain=STORMY), made_up(), strict=True)
    ]
    assert "leave open: 1 of 3 runs without QK-norm" in STUDY.report(one).verdict
    both = SIX_PAIRS.report(made_up(SIX_PAIRS, plain=STORMY, normed=STORMY)).verdict
    assert "leave open: 6 of 6 runs" in both
    assert "p = 1)" in both


def test_the_verdict_follows_the_logits() -> None:
    verdict = STUDY.report(made_up(plain_logits=(5.0, 3.0, 2.0))).verdict
    assert "logits grow no larger without the norm (5.0) than with it (6.0)" in verdict
    assert "In 0 of 3 runs" in verdict


@pytest.mark.parametrize("keep", [True, False])
def test_diverged_runs_are_counted_with_or_without_what_was_seen(keep: bool) -> None:
    rows = with_diverged(made_up(), qk_norm=False, keep=keep)
    report = STUDY.report(rows)
    assert "3 of 3 runs without QK-norm became unstable (3 diverged)" in report.verdict
    assert all(outcome.is_diverged != outcome.condition[2] for outcome in outcomes(rows))
    assert ("largest logit reaches 90.0" in report.verdict) == keep


def test_a_diverging_run_keeps_what_was_seen_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(qk_norm("smoke"), num_steps=1, num_looks=1)
    train = Bench.train

    def diverge_at_the_end(self, recipe, store, folder):
        train(self, recipe, store, folder)
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(Bench, "train", diverge_at_the_end)
    path = run_study(study, tmp_path / "study", command="rectiflow study qk-norm")
    rows = read_rows(path / "metrics.parquet")
    for outcome in outcomes(rows):
        assert outcome.is_diverged
        assert len(outcome.largest_logits) == study.depth
    assert "(1 diverged)" in (path / "README.md").read_text()


@pytest.mark.slow  # the studies of formulations and scaling go the same way by default
def test_a_whole_small_run_leaves_a_report(tmp_path: Path) -> None:
    study = qk_norm("smoke")
    path = run_study(study, tmp_path / "study", command="rectiflow study qk-norm")
    page = (path / "README.md").read_text()
    assert "# Does QK-normalisation keep training stable?" in page
    assert "largest_logit.svg" in page
    rows = read_rows(path / "metrics.parquet")
    attention = [row for row in rows if row.get("kind") == "attention"]
    assert {row["step"] for row in attention} == {0, 1, 2}
    assert all(len(row["entropies"]) == study.depth for row in attention)
    # Normalised queries and keys of 64 numbers, over the root of 64: at most 8 at the start.
    first = [row for row in attention if row["step"] == 0 and row["qk_norm"]]
    assert all(max(row["largest_logits"]) <= 8.0 + 1e-3 for row in first)
