"""`rectiflow info`: what a picture tells goes to stdout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_model

from rectiflow.cli.main import main
from rectiflow.generation.description import describe_picture
from rectiflow.generation.folder import save_picture
from rectiflow.generation.metadata import picture_metadata


def test_the_description_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    about = picture_metadata(model, "a ring", 7, model.settings)
    save_picture(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), about)
    assert main(["info", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == describe_picture(tmp_path / "a.png") + "\n"
