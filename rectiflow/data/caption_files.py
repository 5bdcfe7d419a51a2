"""Captions beside pictures: captions.jsonl, captions.csv, or a .txt file for each picture.

A line of captions.jsonl is {"file": PATH, "caption": TEXT, "captions": {VARIANT: TEXT}}; one of the
two captions is enough. captions.csv has the columns file, caption, and caption_VARIANT for each
variant. Both may carry "origin" and "license". Other keys and columns are not read. Text is UTF-8;
white space around a caption is removed, nothing else is changed. A plain "caption" counts as the
variant "caption", unless a named variant has the same text. A key or column that stands there
twice, of which one would be lost, is an error.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from rectiflow.base.errors import UserError
from rectiflow.base.files import RepeatedKeyError, each_key_once, read_text

JSONL = "captions.jsonl"
CSV = "captions.csv"
PLAIN_VARIANT = "caption"
_VARIANT_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CSV_COLUMNS = ("file", "caption", "origin", "license")
_LINE_FORM = '{"file": "images/0.png", "caption": "a red circle"}'


@dataclass(frozen=True, kw_only=True)
class CaptionEntry:
    """What a folder says of one picture: its path inside the folder and its captions by variant."""

    file: str
    captions: Mapping[str, str]
    origin: str | None = None
    license: str | None = None


def read_caption_file(path: Path) -> list[CaptionEntry]:
    """The entries of a captions.jsonl or captions.csv, in the file's order.

    Raises:
        UserError: the file is unreadable or not UTF-8; a line is malformed, names a path outside
            the folder, or a picture that an earlier line names. The text gives file and line.
    """
    parse = _parse_jsonl if path.name == JSONL else _parse_csv
    entries: list[CaptionEntry] = []
    first_line: dict[str, int] = {}
    for line, entry in parse(path, _read_text(path)):
        if entry.file in first_line:
            raise UserError(
                f"{path}:{line}: {entry.file!r} was named in line {first_line[entry.file]} "
                'already; give a picture one line, with several texts under "captions"'
            )
        first_line[entry.file] = line
        entries.append(entry)
    return entries


def read_text_caption(path: Path) -> Mapping[str, str]:
    """The captions in the .txt file beside a picture: the whole text is one caption.

    Raises:
        UserError: the file is unreadable or not UTF-8.
    """
    return {PLAIN_VARIANT: _read_text(path).strip()}


def _parse_jsonl(path: Path, text: str) -> Iterator[tuple[int, CaptionEntry]]:
    # Only "\n" ends a line: JSON strings may hold the other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line, object_pairs_hook=each_key_once)
        except RepeatedKeyError as error:
            raise _malformed(path, number, f"has {str(error)!r:.40} twice") from error
        except ValueError as error:
            raise _malformed(path, number, f"is not JSON ({error})") from error
        except RecursionError as error:
            raise _malformed(path, number, "nests too deeply") from error
        if not isinstance(data, dict):
            raise _malformed(path, number, "is not a JSON object")
        yield number, _entry(cast(dict[str, Any], data), path, number)


def _repeated(names: Sequence[str]) -> str | None:
    """The first name that stands there more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _parse_csv(path: Path, text: str) -> Iterator[tuple[int, CaptionEntry]]:
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(rows, [])
        variants = {
            name: name.removeprefix("caption_") for name in header if name.startswith("caption_")
        }
        if "file" not in header or not ("caption" in header or variants):
            raise UserError(
                f"{path}:1: the first line names the columns {header}; it needs file and caption, "
                "or caption_VARIANT for each variant"
            )
        read = [name for name in header if name in _CSV_COLUMNS or name in variants]
        if repeated := _repeated(read):
            raise UserError(
                f"{path}:1: the first line names the column {repeated!r:.40} twice; give each "
                "caption a column of its own, such as caption_full"
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                problem = f"has {len(row)} cells, the first line names {len(header)} columns"
                raise _malformed(path, rows.line_num, problem)
            cells = dict(zip(header, row))
            data: dict[str, Any] = {k: cells[k] for k in ("file", "caption") if k in cells}
            # An empty cell is the only way that CSV has of saying "none".
            data |= {key: cells[key] or None for key in ("origin", "license") if key in cells}
            data["captions"] = {variants[k]: cells[k] for k in variants if cells[k].strip()}
            yield rows.line_num, _entry(data, path, rows.line_num)
    except csv.Error as error:
        raise _malformed(path, rows.line_num, f"is not CSV ({error})") from error


def _entry(data: dict[str, Any], path: Path, line: int) -> CaptionEntry:
    def field(name: str) -> str | None:
        value = data.get(name)
        if value is not None and not isinstance(value, str):
            raise _malformed(path, line, f'has {value!r:.40} as "{name}", which must be a string')
        return value

    def provenance(name: str) -> str | None:
        value = field(name)
        if value is not None and not is_unicode(value):
            raise _malformed(path, line, f'has {value!r:.40} as "{name}", no valid Unicode text')
        return value

    named = data.get("captions", {})
    if not isinstance(named, dict):
        raise _malformed(path, line, 'needs {variant: text} as "captions"')
    captions: dict[str, str] = {}
    for variant, text in cast(dict[str, Any], named).items():
        if not isinstance(text, str):
            raise _malformed(path, line, f"has {text!r:.40} as caption {variant!r}, not a string")
        if not _VARIANT_NAME.fullmatch(variant):
            problem = f"names a caption variant {variant!r:.40}; use letters, digits, _ and -"
            raise _malformed(path, line, problem)
        captions[variant] = text.strip()
    plain = (field("caption") or "").strip()
    if plain and plain not in captions.values():
        if captions.get(PLAIN_VARIANT):
            problem = f'has a "caption" and another text as caption {PLAIN_VARIANT!r}; keep one'
            raise _malformed(path, line, problem)
        captions[PLAIN_VARIANT] = plain
    file = field("file")
    if not file:
        raise _malformed(path, line, 'lacks "file"')
    return CaptionEntry(
        file=_inside(file, lambda problem: _malformed(path, line, problem)),
        captions=captions,
        origin=provenance("origin"),
        license=provenance("license"),
    )


def _inside(file: str, error: Callable[[str], UserError]) -> str:
    """The path in its one spelling, if it stays inside the folder by its own letters."""
    inside = PurePosixPath(file)
    if not is_unicode(file):
        raise error(f"names {file!r}, which is not valid Unicode text")
    if inside.is_absolute() or ".." in inside.parts or "\0" in file or not inside.name:
        raise error(f"names {file!r}, which is not a path inside the folder")
    return inside.as_posix()


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: escapes and file names may hide lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _malformed(path: Path, line: int, problem: str) -> UserError:
    return UserError(f"{path}:{line}: the line {problem}; a line looks like {_example(path)}")


def _example(path: Path) -> str:
    return _LINE_FORM if path.name == JSONL else "images/0.png,a red circle"


def _read_text(path: Path) -> str:
    return read_text(path, doing="read the captions in")
