"""`rectiflow evaluate`: which world is scored; the pictures are blank."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_model

from rectiflow.cli import evaluate as verb
from rectiflow.cli.main import main
from rectiflow.evaluation import shapeworld
from rectiflow.evaluation.results import read_evaluation


def test_a_model_without_a_world_is_scored_on_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def blank(_model: object, prompts: Sequence[str], *_: object, **__: object) -> np.ndarray:
        return np.full((len(prompts), 64, 64, 3), 128, np.uint8)

    model = replace(tiny_model(), world=None)
    monkeypatch.setattr(verb, "open_changed_model", lambda *_: model)
    monkeypatch.setattr(shapeworld, "generate", blank)
    call = ["evaluate", "released", "--per-task", "1", "--out", str(tmp_path / "scores.json")]
    assert main(call) == 2
    assert "name one (--world small) to try it all the same" in capsys.readouterr().err
    assert main([*call, "--world", "full"]) == 0
    assert "overall (seen)" in capsys.readouterr().out
    assert read_evaluation(tmp_path / "scores.json").world == "full"
    assert main([*call, "--world", "flat"]) == 2
    assert "--world: invalid choice: 'flat'" in capsys.readouterr().err
