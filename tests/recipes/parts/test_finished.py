"""A run becomes a shipped part: stored in bfloat16, hashed, scored as loaded."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rectiflow.base.errors import UserError
from rectiflow.base.files import read_json, write_json
from rectiflow.generation.model import load_model
from rectiflow.models.shipped import shipped_path, verify
from rectiflow.recipes.parts import finished
from rectiflow.recipes.parts.__main__ import main


@pytest.mark.system
def test_a_run_becomes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for name in ("model.json", "weights.safetensors"):
        shutil.copy(shipped_path("tiny") / name, run / "model")
    write_json(run / "recipe.json", {"name": "of a test"})
    monkeypatch.setattr(finished, "PER_TASK", 1)
    finished.make_model(run, tmp_path / "part", lambda fields: None)
    verify(tmp_path / "part")
    card = read_json(tmp_path / "part" / "card.json")
    assert card["recipe"] == {"name": "of a test"}
    assert card["scores"]["model"] == "of a test"
    assert str(tmp_path) not in (tmp_path / "part" / "card.json").read_text()
    tensors = load_file(tmp_path / "part" / "weights.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert load_model(tmp_path / "part").world == "small"


def test_a_missing_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model"):
        finished.make_model(tmp_path / "none", tmp_path / "part", lambda fields: None)


def test_run_goes_with_model_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["parts", "model", "--out", "x"])
    with pytest.raises(SystemExit):
        main()
    assert "--run goes with model, and only with it" in capsys.readouterr().err
