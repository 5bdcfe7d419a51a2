"""`rectiflow demo`: what is asked for arrives; the demo itself has its own tests."""

from pathlib import Path
from typing import Any

import pytest

from rectiflow.cli.main import main
from rectiflow.recipes import demo


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("demo", (Path("demo"), 10.0, 0)),
        ("demo --out x --minutes 0.5 --seed 3", (Path("x"), 0.5, 3)),
    ],
)
def test_options_arrive(
    line: str, expected: tuple[Path, float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Any] = []

    def run_demo(out: Path, *, minutes: float, seed: int) -> None:
        received.append((out, minutes, seed))

    monkeypatch.setattr(demo, "run_demo", run_demo)
    assert main(line.split()) == 0
    assert received == [expected]


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rectiflow: error: ")
    assert "is not empty and holds no demo; choose a new folder with --out" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
