"""`rectiflow shapeworld draw` from the command line to the files."""

import json
from pathlib import Path

import pytest

from rectiflow.cli.main import main


def draw(out: Path, *options: str) -> int:
    return main(["shapeworld", "draw", "--count", "3", "--out", str(out), *options])


@pytest.mark.system
@pytest.mark.parametrize("world", ["small", "full"])
def test_draws_a_plain_folder(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "images"
    assert draw(out, "--world", world, "--split", "val", "--seed", "5") == 0
    assert capsys.readouterr().out == f"3 pictures with captions in {out}\n"
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [f"images/{i:06d}.png" for i in range(3)]
    assert all((out / line["file"]).is_file() and line["caption"] for line in lines)
    about = json.loads((out / "world.json").read_text())
    assert (about["name"], about["split"], about["seed"]) == (world, "val", 5)


def test_refuses_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert draw(tmp_path) == 2
    assert "the folder is not empty; choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_refuses_a_place_under_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert draw(tmp_path / "file" / "out") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rectiflow: error: cannot write {tmp_path / 'file' / 'out'}: ")
    assert err.count("\n") == 1


def test_a_wrong_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(tmp_path / "out", "--ratios", "1:1,2") == 2
    assert "'2' is no aspect ratio; give width:height in whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ("position", "expected task=weight"),
        ("position=x", "expected task=weight"),
        ("position=1,position=2", "a task is named twice"),
        ("posture=2", "unknown task 'posture'"),
    ],
)
def test_wrong_task_weights(
    tasks: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(tmp_path / "out", "--tasks", tasks) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
