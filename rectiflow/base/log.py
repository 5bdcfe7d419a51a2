"""An append-only event log: one JSON object a line, flushed at once, readable after a crash.

A run's `metrics.jsonl` is one. A process killed in mid-line leaves a cut last line: the next
`EventLog` removes it before appending, and `read_events` leaves it out.
"""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rectiflow.base.errors import UserError
from rectiflow.base.files import explain_os_error


class EventLog:
    """Appends events to `path`, making its folder when missing. Also a context manager.

    Raises:
        UserError: the file cannot be opened or written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("ab+")
            _drop_cut_line(self._file)
        except OSError as error:
            raise explain_os_error(error, self.path, "write the log") from error

    def write(self, kind: str, **fields: Any) -> None:
        """Appends {"kind": kind, "time": unix seconds, **fields} as one line.

        JSON has no NaN and no infinity: such numbers are written as the strings "nan", "inf" and
        "-inf". The line goes to the system in one call, so that two writers do not mix lines.
        """
        event = {"kind": kind, "time": round(time.time(), 3), **fields}
        line = json.dumps(_spell_non_finite(event), allow_nan=False, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise explain_os_error(error, self.path, "write the log") from error

    def close(self) -> None:
        """Closes the file; writing afterwards is an error."""
        try:
            self._file.close()
        except OSError as error:  # what a full disk did not take is tried once more
            raise explain_os_error(error, self.path, "write the log") from error

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_events(path: Path | str, kind: str | None = None) -> list[dict[str, Any]]:
    """The events of a log in order, only those of `kind` when given; a cut last line is left out.

    Raises:
        UserError: the file cannot be read, or a line other than the last is no JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise explain_os_error(error, path, "read the log") from error
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error}); remove that line to read the rest"
            ) from error
        if not isinstance(event, dict):
            raise UserError(
                f"{path}: line {number} is no JSON object; remove that line to read the rest"
            )
        if kind is None or event.get("kind") == kind:
            events.append(event)
    return events


def _drop_cut_line(file: BinaryIO) -> None:
    """Truncates what follows the last newline, reading backwards in blocks."""
    end = file.seek(0, 2)
    position = end
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        file.truncate(position)


def _spell_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spell_non_finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [_spell_non_finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
