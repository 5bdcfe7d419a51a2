"""`rectiflow study`: names and scales that it promises, and mistakes told in one line."""

from pathlib import Path

import pytest

from rectiflow.base.files import write_json
from rectiflow.cli import study as verb
from rectiflow.cli.main import main
from rectiflow.studies.registry import STUDIES
from rectiflow.studies.study import SCALES


def test_the_help_names_every_study_and_scale(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    page = capsys.readouterr().out
    listed = page.split("Studies: ")[1].split(".")[0].split(", ")
    assert sorted(listed) == sorted(STUDIES)
    assert verb.SCALES == SCALES


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_grid_at_every_scale(name: str, scale: str) -> None:
    study = STUDIES[name](scale)  # pyright: ignore[reportArgumentType]
    cells = study.cells()
    assert study.name == name
    assert cells
    assert len({cell.name for cell in cells}) == len(cells)
    assert study.question.endswith("?")


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "colours", "--out", str(tmp_path)]) == 2
    assert "unknown study 'colours'; choose one of formulations" in capsys.readouterr().err
    write_json(tmp_path / "something.json", {})
    assert main(["study", "captions", "--scale", "smoke", "--out", str(tmp_path)]) == 2
    assert "is no study: it holds 'something.json'" in capsys.readouterr().err
    assert main(["study", "captions", "--scale", "huge", "--out", str(tmp_path)]) == 2
    assert "'smoke', 'cpu', 'gpu'" in capsys.readouterr().err
