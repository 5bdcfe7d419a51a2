"""`rectiflow sample` and `evaluate` with a model that is none."""

import re
from pathlib import Path

import pytest

from rectiflow.cli.main import main


@pytest.mark.parametrize("verb", [["sample", "MODEL", "a red circle"], ["evaluate", "MODEL"]])
def test_no_model_is_one_line(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    for name, message in (
        ("absent", 'there is no model .*give "tiny", or the folder of a run'),
        ("empty", "is no model: it holds neither model.json nor model/model.json"),
        ("run", "has no model yet"),
    ):
        line = [str(tmp_path / name) if word == "MODEL" else word for word in verb]
        out = str(tmp_path / "out" / "scores.json")
        assert main([*line, "--out", out]) == 2
        err = capsys.readouterr().err
        assert err.startswith("rectiflow: error: ")
        assert err.count("\n") == 1
        assert re.search(message, err)
    assert not (tmp_path / "out").exists()
