"""`rectiflow shapeworld draw` from the command line to the files."""

import json
import signal
import subprocess
import sys
import time
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
    # Not the same as none: squares were not asked for.
    assert draw(tmp_path / "out", "--ratios", "") == 2
    assert "'' is no aspect ratio" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_draw_the_same(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        assert draw(tmp_path / workers, "--count", "70", "--workers", workers) == 0
    one, two = (sorted((tmp_path / w / "images").iterdir()) for w in ("1", "2"))
    assert len(one) == len(two) == 70
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


@pytest.mark.system
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_leaves_nothing_behind(tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rectiflow", "shapeworld", "draw", "--count", "1000000"]
    process = subprocess.Popen([*command, "--out", str(out), "--workers", workers])
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".out.tmp-*/images/*.png")):
            assert time.monotonic() < until
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert not list(tmp_path.iterdir())


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
