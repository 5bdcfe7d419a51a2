"""The demo walks from nothing to a page, goes on where it was, and refuses other demos' folders."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_autoencoder, tiny_backbone, tiny_conditioner

from rectiflow.base.errors import UserError
from rectiflow.base.files import read_json
from rectiflow.generation import frozen_parts
from rectiflow.recipes import demo as demo_module
from rectiflow.recipes.demo import run_demo
from rectiflow.recipes.small import demo as demo_recipe
from rectiflow.recipes.training import train_on_store
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.hooks import CheckpointSaved, Event, Hook
from rectiflow.training.loop import TrainResult
from rectiflow.training.recipe import TrainRecipe

STAGES = ["Draw the world", "Encode", "Calibrate", "Train", "Sample and score"]


def _small_recipe() -> TrainRecipe:
    recipe = demo_recipe()
    return replace(
        recipe,
        backbone=replace(tiny_backbone(depth=1).config, patch_size=2),
        batch_size=4,
        num_validation=4,
        sample_prompts=recipe.sample_prompts[:2],
        sampling=SamplingDefaults(num_steps=1, guidance_scale=2.0),
    )


@pytest.fixture(autouse=True)
def _tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_parts, "load_autoencoder", tiny_autoencoder)
    monkeypatch.setattr(frozen_parts, "load_prompt_encoder", tiny_conditioner)
    monkeypatch.setattr(demo_module, "demo_recipe", _small_recipe)
    monkeypatch.setattr(demo_module, "NUM_PICTURES", (24, 24))
    monkeypatch.setattr(demo_module, "NUM_MOMENTS", 2)


@pytest.fixture
def _no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "calibrate", lambda *_, **__: 5.0)


@pytest.mark.system
def test_walks_from_nothing_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    report = run_demo(out, minutes=0.01, seed=3, per_task=1)
    told = capsys.readouterr().out
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/5] {stage}:" in told
    assert told.strip().endswith(str(report))
    assert "overall (unseen)" in told
    record = read_json(out / "demo.json")
    assert (record["done"], list(record["stages"])) == (STAGES, STAGES)
    assert record["is_paced"]
    assert read_json(out / "run" / "recipe.json")["max_steps"] == record["max_steps"]
    page = report.read_text()
    for text in ("What it draws", "From noise to meaning", "Held-out loss", "seed 3", "MM-DiT"):
        assert text in page

    report.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    assert run_demo(out, minutes=0.01, seed=3, per_task=1).is_file()
    told = capsys.readouterr().out
    assert told.count("done before") == 5
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"report.html"}
    assert read_json(out / "demo.json")["stages"] == record["stages"]

    with pytest.raises(UserError, match=r"holds a demo of 0.01 minutes with seed 3; give the same"):
        run_demo(out, minutes=5.0, seed=3)


@pytest.mark.usefixtures("_no_calibration")
def test_an_interrupted_demo_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(recipe: TrainRecipe, *args: object, **kwargs: object) -> TrainResult:
        result = train_on_store(recipe, *args, **(kwargs | {"until": 2}))  # pyright: ignore
        return replace(result, signal=int(signal.SIGINT))

    monkeypatch.setattr(demo_module, "train_on_store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, minutes=0.02, per_task=1)
    assert "stopped at step 2; the same command goes on there" in capsys.readouterr().out
    record = read_json(tmp_path / "demo.json")
    assert record["done"] == STAGES[:3]
    assert record["stages"]["Train"] > 0

    def stopped(*args: object, **kwargs: object) -> TrainResult:
        return replace(interrupted(*args, **kwargs), signal=int(signal.SIGTERM))  # pyright: ignore

    monkeypatch.setattr(demo_module, "train_on_store", stopped)
    with pytest.raises(SystemExit) as leaving:
        run_demo(tmp_path, minutes=0.02, per_task=1)
    assert leaving.value.code == 143

    monkeypatch.setattr(demo_module, "train_on_store", train_on_store)
    assert run_demo(tmp_path, minutes=0.02, per_task=1).is_file()
    sessions = read_json(tmp_path / "run" / "environment.json")["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 2, 2, 2]
    assert read_json(tmp_path / "demo.json")["stages"]["Train"] > record["stages"]["Train"]


@pytest.mark.usefixtures("_no_calibration")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_stops_the_walk(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(Hook):
        def handle(self, event: Event) -> None:
            if isinstance(event, CheckpointSaved):
                os.kill(os.getpid(), number)

    def killed(*args: Any, hooks: list[Hook], **kwargs: Any) -> TrainResult:
        result = train_on_store(*args, hooks=[*hooks, Kill()], **kwargs)
        assert result.interrupted is None
        return result

    monkeypatch.setattr(demo_module, "train_on_store", killed)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        run_demo(tmp_path, minutes=0.02, per_task=1)
    record = read_json(tmp_path / "demo.json")
    assert (record["done"], record["is_paced"]) == (STAGES[:3], False)


def test_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no demo; choose a new folder"):
        run_demo(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        run_demo(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
