"""Caption files: the three forms, and one clear error for each way to get them wrong."""

import json
from pathlib import Path

import pytest

from rectiflow.base.errors import UserError
from rectiflow.data.caption_files import read_caption_file, read_text_caption


def jsonl(folder: Path, *lines: object) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def csv(folder: Path, text: str) -> Path:
    path = folder / "captions.csv"
    path.write_text(text)
    return path


def test_jsonl_with_variants(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"file": "./a.png", "caption": " one ", "captions": {"terse": "one", "full": "one two"}},
        "",
        {"file": "b.png", "caption": "separator \u2028 inside", "origin": "me", "license": "CC0"},
        {"file": "c.png", "caption": "plain", "captions": {"full": "long"}, "score": 3},
        {"file": "d.png"},
    )
    a, b, c, d = read_caption_file(path)
    assert (a.file, a.captions) == ("a.png", {"terse": "one", "full": "one two"})
    assert (b.captions, b.origin, b.license) == (
        {"caption": "separator \u2028 inside"}, "me", "CC0",
    )  # fmt: skip
    assert c.captions == {"full": "long", "caption": "plain"}
    assert d.captions == {}


def test_csv_with_variants_and_line_breaks(tmp_path: Path) -> None:
    header = "\ufefffile,caption,caption_full,license,other\n"
    text = header + 'a.png,"one, two","long\nlong",,x\n\nb.png,,c,CC0,\n'
    a, b = read_caption_file(csv(tmp_path, text))
    assert a.captions == {"caption": "one, two", "full": "long\nlong"}
    assert a.license is None
    assert (b.captions, b.license) == ({"full": "c"}, "CC0")


def test_the_same_text_twice_is_no_loss(tmp_path: Path) -> None:
    line = {"file": "a.png", "caption": "x", "captions": {"caption": " x "}}
    (entry,) = read_caption_file(jsonl(tmp_path, line))
    assert entry.captions == {"caption": "x"}
    # Columns that are not read may have any name.
    (entry,) = read_caption_file(csv(tmp_path, "file,caption,,\na.png,x,1,2\n"))
    assert entry.captions == {"caption": "x"}


def test_text_file_is_one_caption(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" a red circle\n", encoding="utf-8-sig")
    assert read_text_caption(path) == {"caption": "a red circle"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file": "a.png", ', "is not JSON"),
        ("[" * 100_000, "nests too deeply"),
        ("[1]", "is not a JSON object"),
        ({"caption": "x"}, 'lacks "file"'),
        ({"file": 3, "caption": "x"}, 'has 3 as "file", which must be a string'),
        ({"file": "a.png", "caption": ["x"]}, """has ['x'] as "caption", which must be a string"""),
        ({"file": "a.png", "captions": ["x"]}, 'needs {variant: text} as "captions"'),
        ({"file": "a.png", "captions": {"v": 1}}, "has 1 as caption 'v', not a string"),
        ({"file": "a.png", "captions": {"a b": "x"}}, "names a caption variant 'a b'"),
        ({"file": "../a.png", "caption": "x"}, "names '../a.png', which is not a path inside"),
        ({"file": "b/../../a.png", "caption": "x"}, "which is not a path inside the folder"),
        ({"file": "/etc/passwd", "caption": "x"}, "which is not a path inside the folder"),
        ({"file": ".", "caption": "x"}, "which is not a path inside the folder"),
        ({"file": "a\0.png", "caption": "x"}, "which is not a path inside the folder"),
        ({"file": "\ud800.png", "caption": "x"}, "which is not valid Unicode text"),
        ({"file": "a.png", "origin": "\ud800"}, """has '\\ud800' as "origin", no valid Unicode"""),
        ({"file": "a.png", "license": "x\udcff"}, 'as "license", no valid Unicode text'),
        (
            {"file": "a.png", "caption": "plain", "captions": {"caption": "named"}},
            """has a "caption" and another text as caption 'caption'; keep one""",
        ),
        ('{"file": "a.png", "caption": "x", "caption": "y"}', "has 'caption' twice"),
        ('{"file": "a.png", "captions": {"v": "x", "v": "y"}}', "has 'v' twice"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    path = jsonl(tmp_path, {"file": "ok.png", "caption": "x"}, line)
    with pytest.raises(UserError) as error:
        read_caption_file(path)
    assert str(error.value).startswith(f"{path}:2: the line ")
    assert problem in str(error.value)
    assert str(error.value).endswith(
        'a line looks like {"file": "images/0.png", "caption": "a red circle"}'
    )
    assert "\n" not in str(error.value)


def test_duplicate_entry_names_both_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *[{"file": f, "caption": "x"} for f in ("a.png", "b.png", "./a.png")])
    with pytest.raises(
        UserError, match=r":3: 'a\.png' was named in line 1 already; give a picture"
    ):
        read_caption_file(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":1: the first line names the columns []; it needs file and caption"),
        ("name,caption\na.png,x\n", "the columns ['name', 'caption']; it needs file"),
        ("file,text\na.png,x\n", "it needs file and caption, or caption_VARIANT"),
        ('"file"x,caption\na.png,x\n', ":1: the line is not CSV"),
        ("file,caption\na.png\n", ":2: the line has 1 cells, the first line names 2 columns"),
        ('file,caption\na.png,"x" y\n', ":2: the line is not CSV"),
        ("file,caption\n../a.png,x\n", ":2: the line names '../a.png'"),
        (
            "file,caption,caption\na.png,x,y\n",
            ":1: the first line names the column 'caption' twice; give each caption a column",
        ),
        ("file,caption_a,caption_a\na.png,x,y\n", "names the column 'caption_a' twice"),
        ("file,caption,caption_caption\na.png,x,y\n", ':2: the line has a "caption" and another'),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError) as error:
        read_caption_file(csv(tmp_path, text))
    assert problem in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'{"file": "a.png", "caption": "x"}\n{"file": "b.png", "caption": "\xe9"}\n')
    with pytest.raises(UserError, match=r":2: the text is not UTF-8; save the file as UTF-8"):
        read_caption_file(path)


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot read the captions in .*it is a folder, not a file"):
        read_caption_file(tmp_path / "captions.jsonl")
