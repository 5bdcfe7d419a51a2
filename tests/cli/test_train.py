"""`rectiflow train`: recipe, overrides and exit code; the training itself is replaced."""

import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from data.parts import encode, make_folder

from rectiflow.cli.main import main
from rectiflow.distributed.world import ALONE
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.recipes import training
from rectiflow.training.ema import EmaConfig
from rectiflow.training.loop import TrainResult
from rectiflow.training.recipe import TrainRecipe

CALL = ["train", "demo", "--data", "store", "--out", "run"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `train` is called with; it ends at once, well."""
    return replace_training(monkeypatch, interrupted=None)


def replace_training(
    monkeypatch: pytest.MonkeyPatch, *, interrupted: int | None
) -> list[dict[str, Any]]:
    received: list[dict[str, Any]] = []

    def train_on_store(recipe: TrainRecipe, store: Path, out: Path, **settings: Any) -> TrainResult:
        received.append({"recipe": recipe, "store": store, "out": out} | settings)
        return TrainResult(
            run=out,
            model=out / "model",
            step=5,
            max_steps=10,
            elapsed_s=1.0,
            signal=interrupted,
            interrupted=interrupted,
            validation=None,
        )

    monkeypatch.setattr(training, "train_on_store", train_on_store)
    return received


def test_the_recipe_and_the_places_arrive(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(CALL) == 0
    (call,) = calls
    assert call["recipe"].name == "demo"
    assert (call["store"], call["out"], call["max_steps"]) == (Path("store"), Path("run"), None)
    assert call["world"] is ALONE
    assert capsys.readouterr().out == "10 steps done; the model lies in run/model\n"


def test_weights_and_biases_only_when_asked_for(
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())
    assert main(CALL) == 0
    assert main([*CALL, "--wandb", "pictures"]) == 0
    assert [len(call["hooks"]) for call in calls] == [0, 1]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*CALL, "--wandb", "pictures"]) == 2
    assert "--wandb needs the package wandb" in capsys.readouterr().err


def test_fields_and_steps_are_options(calls: list[dict[str, Any]]) -> None:
    fields = ["--batch-size", "8", "--ema.decay", "0.5", "--spikes.threshold", "20"]
    fields += ["--ema.sigma-rels", "0.05", "0.1", "--ema.snapshot-every", "50"]
    fields += ["--recompute", "products", "--compile-blocks"]
    assert main([*CALL, "--max-steps", "7", *fields, "--diagnose-every", "5"]) == 0
    (call,) = calls
    assert call["max_steps"] == 7
    assert call["recipe"].batch_size == 8
    assert call["recipe"].ema == EmaConfig(decay=0.5, sigma_rels=(0.05, 0.1), snapshot_every=50)
    assert (call["recipe"].recompute, call["recipe"].compile_blocks) == ("products", True)
    assert call["recipe"].spikes.is_on
    assert call["recipe"].diagnose_every == 5


def test_every_backbone_has_a_recipe_and_its_fields_are_options(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", "store", "--out", "run"]
    sizes = ["--backbone.depth", "2", "--backbone.width", "96", "--backbone.head-dim", "48"]
    chosen = [*sizes, "--backbone.num-residual-blocks", "1", "--backbone.use-qk-norm"]
    assert main(["train", "uvit-d3", *places, *chosen]) == 0
    backbone = calls[0]["recipe"].backbone
    assert isinstance(backbone, UViTConfig)
    assert (backbone.depth, backbone.hidden_dim, backbone.num_residual_blocks) == (2, 96, 1)
    assert backbone.use_qk_norm
    assert main(["train", "mmdit-d2", *places, "--backbone.num-clip-tokens", "16"]) == 0
    assert calls[1]["recipe"].backbone.num_clip_tokens == 16
    assert main(["train", "dit-d2", *places, "--backbone.num-clip-tokens", "16"]) == 2
    assert "--backbone.num-clip-tokens" in capsys.readouterr().err
    assert main(["train", "dit-d2", *places, "--backbone.width", "100"]) == 2
    assert "cannot be cut into heads of head_dim=64" in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(
    stop: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_training(monkeypatch, interrupted=stop)
    assert main(CALL) == code
    assert capsys.readouterr().out == "stopped at step 5 of 10; the same command continues\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nope --data s --out r", "unknown recipe 'nope'; choose one of demo"),
        ("nope --help", "unknown recipe 'nope'"),
        ("demo --data s --out r --batchsize 3", "Unrecognized options: --batchsize"),
        ("demo --data s --out r --max_steps 3", "write --max-steps, which a run that is"),
        ("demo --data s --out r --batch-size few", "--batch-size"),
        ("demo --data s --out r --batch-size 0", "batch_size is 0; it must be at least 1"),
        ("demo --data s --out r --ema.decay 2", "ema.decay is 2.0; give a number from 0 to"),
        ("demo --data s --out r --precision fp8", "invalid choice 'fp8'"),
    ],
)
def test_mistakes_are_one_line(
    line: str, message: str, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *line.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rectiflow: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert calls == []


def test_any_formulation_is_an_option(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--formulation", "rf/lognorm(0.5,0.6)", "--formulation.timesteps.std", "0.7"]
    assert main([*CALL, *chosen]) == 0
    assert str(calls[0]["recipe"].formulation) == "rf/lognorm(0.50,0.70)"
    assert main([*CALL, "--formulation", "edm/rf"]) == 0
    assert str(calls[1]["recipe"].formulation) == "edm/rf"
    assert main([*CALL, "--formulation", "rf/mode(3)"]) == 2
    assert "scale=3.0 is out of range" in capsys.readouterr().err
    assert len(calls) == 2


def test_a_missing_store_leaves_no_run_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "demo", "--data", str(tmp_path / "none"), "--out", str(run)]) == 2
    assert "rectiflow encode makes one" in capsys.readouterr().err
    assert not run.exists()


def test_a_store_of_other_parts_is_refused_also_without_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(make_folder(tmp_path / "folder", 2), tmp_path / "store")
    run = tmp_path / "run"
    call = ["train", "demo", "--data", str(tmp_path / "store"), "--out", str(run)]
    assert main([*call, "--sample-every", "0"]) == 2
    assert "the store was encoded by another autoencoder" in capsys.readouterr().err
    assert not run.exists()


def test_the_fields_of_a_recipe_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo", "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: rectiflow train demo")
    assert "--optimizer.learning-rate" in page
    assert "--formulation.timesteps.std" in page
