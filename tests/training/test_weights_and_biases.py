"""What is sent to Weights & Biases, seen by a stand-in for its package."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import DivergedError, UserError
from rectiflow.training.loop import train
from rectiflow.training.weights_and_biases import WeightsAndBiases


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    def define_metric(self, *names: str, **options: str) -> None:
        pass

    def log(self, figures: dict[str, Any]) -> None:
        self.logged.append(figures)

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], FakeRun]]:
    """The runs that were started, with their settings."""
    runs: list[tuple[dict[str, Any], FakeRun]] = []

    def init(**settings: Any) -> FakeRun:
        runs.append((settings, FakeRun()))
        return runs[-1][1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return runs


def test_a_continued_run_goes_on_in_the_same_curves(
    started: list[tuple[dict[str, Any], FakeRun]], tmp_path: Path
) -> None:
    run, recipe = tmp_path / "run", tiny_recipe(max_steps=6, diagnose_every=6, precision="fp32")
    for max_steps in (3, 6):
        hook = WeightsAndBiases("pictures", run)
        train(recipe, FakeFeed(), run, max_steps=max_steps, progress=False, hooks=[hook])
    (first, begun), (second, continued) = started
    assert (first["project"], first["name"], first["resume"]) == ("pictures", "run", "allow")
    assert first["config"]["batch_size"] == 4
    assert first["id"] == second["id"]
    assert begun.exit_code == continued.exit_code == 0
    steps = [figures["step"] for figures in continued.logged]
    assert steps == [6, 6, 6]
    names = {name for figures in continued.logged for name in figures}
    assert {"train/loss", "usage/step_share", "validation/ema", "diagnosis"} <= names


def test_a_run_that_fails_is_told_as_failed(
    started: list[tuple[dict[str, Any], FakeRun]], tmp_path: Path
) -> None:
    hook = WeightsAndBiases("pictures", tmp_path / "run")
    with pytest.raises(DivergedError):
        feed = FakeFeed(poisoned_step=2)
        train(tiny_recipe(), feed, tmp_path / "run", progress=False, hooks=[hook])
    ((_, begun),) = started
    assert begun.exit_code == 1


def test_what_keeps_a_run_from_beginning_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> FakeRun:
        raise RuntimeError("api_key not configured\nand more")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    hook = WeightsAndBiases("pictures", tmp_path / "run")
    with pytest.raises(UserError, match="not let the run begin: api_key not configured; run"):
        train(tiny_recipe(), FakeFeed(), tmp_path / "run", progress=False, hooks=[hook])


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb needs the package wandb, which is not installed"):
        WeightsAndBiases("pictures", tmp_path)
