"""Lists of prompts: .txt with one a line, .jsonl and .csv with settings of their own.

A line names what it changes as `rectiflow sample` does: {"prompt": "a ring", "seed": 7, "steps":
20, "guidance": "apg", "lora": "style.safetensors:0.8"}. What it leaves out is as for every line.
Files that it names are looked for from the list's folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.base.files import read_text
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.settings import SETTING_NAMES, SamplingSettings


def _file(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _files(value: str | list[Any]) -> list[str]:
    """One, or in JSON a list of them, which may be empty."""
    return [_file(each) for each in ([value] if isinstance(value, str) else value)]


#: How each key's value is read; any that is no number is a text.
_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "n": int,
    **{name: kind for name, (_, kind) in SETTING_NAMES.items()},
    "image": _file,
    "mask": _file,
    "strength": float,
    "lora": _files,
}
_WORDS: Mapping[Callable[[Any], Any], str] = {
    int: "a whole number",
    float: "a number",
    _file: "a file's name",
    _files: "a file's name, or a list of them",
}
_TYPES: Mapping[Callable[[Any], Any], tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    _files: (str, list),
}


@dataclass(frozen=True, kw_only=True)
class PromptEntry:
    """A line of a list: a prompt, and what is not as for the others (None: as for them).

    `changes` are fields of `SamplingSettings`. An `image` is drawn from at its own size, under its
    own `mask` or none; `mask` and `strength` alone change what all lines are drawn from. `loras`
    stand in place of those of the others. `source` is the file that `line`, from 1, is of.

    Raises:
        ConfigError: `count` is below 1.
    """

    prompt: str
    line: int
    source: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    count: int | None = None
    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None
    loras: tuple[LoraFile, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f'"n" is {self.count}, but at least 1 picture is to be drawn')

    @property
    def place(self) -> str:
        """File and line, as errors and warnings begin."""
        return f"{self.source}:{self.line}" if self.source else f"line {self.line}"

    def settings(self, usual: SamplingSettings) -> SamplingSettings:
        """The line's own settings.

        Raises:
            ConfigError: they do not go together.
        """
        return replace(usual, **self.changes)


def read_prompt_list(path: Path | str) -> list[PromptEntry]:
    """The lines of a list, by the ending of its name: .txt, .jsonl or .csv.

    In a .txt, blank lines and those that begin with "#" are left out; in the others blank lines.

    Raises:
        UserError: the file is of another kind, unreadable, not UTF-8, or without a prompt.
        ConfigError: a line is malformed, has an unknown key, or a value that it cannot have; the
            text gives file and line.
    """
    path = Path(path)
    parse = {".txt": _parse_txt, ".jsonl": _parse_jsonl, ".csv": _parse_csv}.get(
        path.suffix.lower()
    )
    if parse is None:
        raise UserError(f"{path} is no list of prompts; a list is a .txt, .jsonl or .csv file")
    entries: list[PromptEntry] = []
    line = 0
    try:
        for line, given in parse(read_text(path)):
            entries.append(_entry(given, line, str(path)))
    except _MalformedLineError as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}:{line}: {error}") from error
    if not entries:
        raise UserError(f"{path} holds no prompt; write at least one line")
    return entries


class _MalformedLineError(ConfigError):
    """A line that cannot be taken apart."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def _parse_txt(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, prompt in enumerate(map(str.strip, text.split("\n")), start=1):
        if prompt and not prompt.startswith("#"):
            yield line, {"prompt": prompt}


def _parse_jsonl(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Only "\n" ends a line: JSON strings may hold the other line separators of Unicode.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            given = json.loads(content, object_pairs_hook=_refuse_double_keys)
        except ValueError as error:
            raise _MalformedLineError(line, f"the line is not JSON ({error})") from error
        except RecursionError as error:
            raise _MalformedLineError(line, "the line has brackets without end") from error
        if not isinstance(given, dict):
            raise _MalformedLineError(
                line, 'the line is no JSON object; a line looks like {"prompt": "a red circle"}'
            )
        entries = cast(dict[str, Any], given)
        for key, value in entries.items():
            kind = _kind(key, line)
            if isinstance(value, bool) or not isinstance(value, _TYPES.get(kind, (str,))):
                raise _MalformedLineError(
                    line,
                    f'"{key}" is {value!r:.40}; it must be {_WORDS.get(kind, "a text in quotes")}',
                )
        yield line, entries


def _parse_csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = next(rows, [])
        for key in header:
            _kind(key, line)
        if "prompt" not in header or len(set(header)) != len(header):
            raise _MalformedLineError(
                line, f"the first line names the columns {header}; it needs prompt, each once"
            )
        while True:
            line = rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            if not row:
                continue
            if len(row) != len(header):
                raise _MalformedLineError(
                    line, f"the line has {len(row)} cells, the first one {len(header)} columns"
                )
            # An empty cell is the only way that CSV has of saying nothing.
            yield line, {key: cell for key, cell in zip(header, row) if cell or key == "prompt"}
    except csv.Error as error:
        raise _MalformedLineError(line, f"the line is not CSV ({error})") from error


def _refuse_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f'"{key}" stands there twice')
    return dict(pairs)


def _kind(key: str, line: int) -> Callable[[Any], Any]:
    if key not in _KINDS:
        raise _MalformedLineError(line, f'unknown key "{key}"; there are {", ".join(_KINDS)}')
    return _KINDS[key]


def _entry(given: Mapping[str, Any], line: int, source: str) -> PromptEntry:
    if "prompt" not in given:
        raise ConfigError('the line lacks "prompt"; a line looks like {"prompt": "a red circle"}')
    values: dict[str, Any] = {}
    for key, value in given.items():
        kind = _KINDS[key]
        try:
            values[key] = kind(value)
        except ConfigError:
            raise
        except (ValueError, OverflowError) as error:
            raise ConfigError(f'"{key}" is {value!r:.40}; it must be {_WORDS[kind]}') from error
    folder = Path(source).parent
    return PromptEntry(
        prompt=values["prompt"],
        line=line,
        source=source,
        negative_prompt=values.get("negative_prompt"),
        seed=values.get("seed"),
        count=values.get("n"),
        image=folder / values["image"] if "image" in values else None,
        mask=folder / values["mask"] if "mask" in values else None,
        strength=values.get("strength"),
        loras=tuple(LoraFile.parse(str(folder / text)) for text in values["lora"])
        if "lora" in values
        else None,
        changes={name: values[key] for key, (name, _) in SETTING_NAMES.items() if key in values},
    )
