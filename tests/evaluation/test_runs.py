"""Runs are listed and compared as their folders are; a broken one hides no other."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training.fake_feed import tiny_recipe

from rectiflow.base.config import save_config
from rectiflow.base.errors import UserError
from rectiflow.cli.main import main
from rectiflow.evaluation.run_comparison import compare_runs
from rectiflow.evaluation.runs import (
    age_text,
    cautions,
    find_runs,
    list_runs,
    names_of,
    read_run,
    recipe_differences,
)
from rectiflow.flow import ResolutionShift
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.run_folder import locked
from rectiflow.training.spikes import Spike, SpikeGuard, record_spike


def fake_run(
    path: Path, recipe: TrainRecipe | None = None, *, steps: int = 12, age_s: float = 0.0
) -> Path:
    """A run's folder as a training of `steps` steps leaves it, an `age_s` ago."""
    recipe = recipe or tiny_recipe()
    save_config(_made(path) / "recipe.json", recipe)
    (path / "environment.json").write_text('{"sessions": []}')
    now = time.time() - age_s
    events: list[dict[str, Any]] = []
    for step in range(3, steps + 1, 3):
        common = {"time": now, "step": step, "elapsed_s": 10.0 * step}
        usage = {"flops_per_second": 2.5e9, "peak_memory_bytes": 3_000_000_000}
        train = {"loss": 1.0 / step, "images_per_second": 40.0, "usage": usage}
        events.append({"kind": "train", **common, **train})
        raw, ema = {"loss": 2.0 / step, "error": 0.01}, {"loss": 3.0 / step, "error": 0.02}
        events.append({"kind": "validation", **common, "raw": raw, "ema": ema})
    with (path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    _made(path / "checkpoints" / f"step_{steps:08d}")
    if steps == recipe.max_steps:
        card = {"provenance": {"store": "a" * 64}}
        (_made(path / "model") / "model.json").write_text(json.dumps(card))
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_list_says_where_each_run_stands(tmp_path: Path) -> None:
    fake_run(tmp_path / "done", age_s=7200.0)
    fake_run(tmp_path / "deep" / "cells" / "a" / "run", steps=6, age_s=90_000.0)
    diverged = fake_run(tmp_path / "lost", steps=6, age_s=300.0)
    _made(diverged / "failure_step_00000007")
    _made(tmp_path / "unrelated" / "checkpoints")
    going = fake_run(tmp_path / "going", steps=3)
    with locked(going):
        lines = list_runs(tmp_path).splitlines()
    assert lines[0].split() == [
        "run",
        "recipe",
        "backbone",
        "step",
        "state",
        "raw",
        "EMA",
        "images/s",
        "age",
    ]
    rows = [line.split("  ") for line in lines[2:]]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    # The latest first.
    assert [row[0] for row in cells] == ["going", "lost", "done", "deep/cells/a/run"]
    assert [row[4] for row in cells] == ["running", "diverged", "finished", "stopped"]
    assert [row[8] for row in cells] == ["0 s", "5 min", "2 h", "1 d"]
    loss = ["0.1667 ± 0.0100", "0.2500 ± 0.0200"]
    assert cells[2][1:8] == ["test", "MM-DiT 1×64", "12/12", "finished", *loss, "40"]
    assert read_run(going).state == "stopped"


def test_a_run_that_its_spikes_have_ended_has_diverged(tmp_path: Path) -> None:
    """A spike that is a number leaves no folder of its own."""
    recipe = tiny_recipe(spikes=SpikeGuard(threshold=30.0, limit=2))
    spike = Spike(figure="loss", value=9.0, bound=1.0)
    for steps, later in ((6, "diverged"), (12, "finished")):
        run = fake_run(tmp_path / later, recipe, steps=steps)
        found = [read_run(run).state]
        for step in (4, 5):
            record_spike(run, spike, step=step, back_to=3, skipped=[step])
            found.append(read_run(run).state)
        before = "finished" if later == "finished" else "stopped"
        assert found == [before, before, later]


def test_a_run_that_has_just_begun_has_no_figures_yet(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", steps=0)
    (run / "metrics.jsonl").unlink()
    assert list_runs(run).splitlines()[-1].split()[4:9] == ["0/12", "stopped", "–", "–", "–"]
    assert "–" in compare_runs([run, fake_run(tmp_path / "other")], tmp_path / "page.html")


def test_a_broken_run_hides_no_other(tmp_path: Path) -> None:
    fake_run(tmp_path / "fine")
    fake_run(tmp_path / "cut").joinpath("recipe.json").write_text('{"name": ')
    fake_run(tmp_path / "odd").joinpath("metrics.jsonl").write_text('{"kind": "train"}\n')
    text = list_runs(tmp_path)
    assert "finished" in text
    assert f"unreadable: {tmp_path / 'cut' / 'recipe.json'} is not valid JSON" in text
    assert "is not the log of a run: an event lacks 'time'" in text


def test_folders_without_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot list the runs of .*nowhere: it does not exist"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="it is a file; give a folder"):
        find_runs(tmp_path / "file")
    with pytest.raises(UserError, match="holds no runs: rectiflow train makes them"):
        find_runs(tmp_path)
    with pytest.raises(UserError, match=r"is no run; a run is a folder that rectiflow train has"):
        read_run(tmp_path)
    with pytest.raises(UserError, match=r"nowhere is missing; a run is"):
        read_run(tmp_path / "nowhere")


def test_a_comparison_says_what_differs_and_draws_the_curves(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    first = fake_run(tmp_path / "a" / "run", recipe)
    wider = replace(recipe, backbone=replace(recipe.backbone, width=128), seed=3)
    second = fake_run(tmp_path / "b" / "run", wider, steps=6)
    third = fake_run(tmp_path / "c" / "run", replace(recipe, seed=4, diagnose_every=5))
    page = tmp_path / "page.html"
    text = compare_runs([first, second, third], page)
    runs = [read_run(path) for path in (first, second, third)]
    assert names_of(runs) == ["a/run", "b/run", "c/run"]
    assert dict(recipe_differences(runs)) == {
        "seed": ("0", "3", "4"),
        "backbone.width": ("None", "128", "None"),
        # recipe.json leaves it out where it is its default.
        "diagnose_every": ("0", "0", "5"),
    }
    assert "backbone.width" in text
    (row,) = [line for line in text.splitlines() if line.startswith("b/run  ")]
    assert row.split()[1:4] == ["stopped", "6", "0.1667"]
    assert row.split()[-8:] == ["40", "2.5", "G", "3.00", "GB", "0", "1", "min"]
    html = page.read_text()
    assert html.count('<svg class="chart"') == 4
    assert html.count(">b/run</text>") == 4
    assert "http" not in html.replace("http://www.w3.org", "")
    assert cautions(runs) == []


def test_losses_that_measure_different_things_are_told(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    first = fake_run(tmp_path / "a", recipe)
    second = fake_run(tmp_path / "b", replace(recipe, shift=ResolutionShift(alpha=3.0)))
    card = {"provenance": {"store": "b" * 64}}
    (second / "model" / "model.json").write_text(json.dumps(card))
    text = compare_runs([first, second], tmp_path / "page.html")
    assert "The recipes differ in shift: their losses measure different things" in text
    assert "trained on different stores" in text


def test_two_different_runs_are_needed(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"0 run\(s\) to compare: none; give two or more"):
        compare_runs([], tmp_path / "page.html")
    with pytest.raises(UserError, match=r"2 run\(s\) to compare: .*; give two or more different"):
        compare_runs([run, run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(tmp_path / "a")
    fake_run(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["runs", "compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "Their recipes are the same." in out
    assert out.endswith(f"curves: {tmp_path / 'comparison.html'}\n")
    assert main(["runs", "a", "b"]) == 2
    assert "to compare runs: rectiflow runs compare" in capsys.readouterr().err
    assert main(["runs", "a", "--out", "x.html"]) == 2
    assert "a list has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.0, "12 s"), (300.0, "5 min"), (7200.0, "2 h"), (2e5, "2 d")]
)
def test_age(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_different_stores_are_told_of_runs_that_trained_a_lora_too(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / name, tiny_recipe()) for name in "ab"]
    for run, store in zip(runs, "ab", strict=True):
        (run / "model" / "model.json").unlink(missing_ok=True)
        provenance = json.dumps({"store": store * 64})
        (run / "model" / "provenance.json").write_text(provenance)
    assert "trained on different stores" in compare_runs(runs, tmp_path / "page.html")
