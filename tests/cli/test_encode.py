"""`rectiflow encode`: folders that cannot be encoded, told before any encoder is loaded."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rectiflow.cli.main import main


def encode(folder: Path, *options: str) -> int:
    return main(["encode", str(folder), "--out", str(folder.parent / "store"), *options])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for pictures."""
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.startswith("rectiflow: error: ")
    assert err.count("\n") == 1
    return err


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode(tmp_path / "absent") == 2
    assert "absent: it does not exist; check the spelling" in one_line(capsys)


def test_empty_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode(folder) == 2
    assert "has no pictures" in one_line(capsys)


def test_folder_without_captions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    assert encode(folder) == 2
    assert "has no captions: add captions.jsonl" in one_line(capsys)


def test_captions_of_missing_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "captions.jsonl").write_text(json.dumps({"file": "b.png", "caption": "a cat"}))
    assert encode(folder) == 2
    assert "'b.png': the captions name it, but there is no such file" in one_line(capsys)
    assert not (folder.parent / "store").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--buckets", "1:1,wide"], "'wide' is no aspect ratio; give width:height"),
        (["--buckets", ""], "'' is no aspect ratio; give width:height"),
        (["--resolution", "72", "--buckets", "1:1"], "it must be a multiple of 16"),
        (["--resolution", "72"], "resolution_px is 72; it must be a multiple of 16, the side of a"),
        (["--t5-tokens", "77"], "are about released parts; say which with --parts MODEL"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
    ],
)
def test_impossible_settings(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert encode(folder, *options) == 2
    assert text in one_line(capsys)
