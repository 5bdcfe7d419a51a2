"""Tensors in safetensors files: whole ones, and those that several processes wrote in parts.

On the walk of a sample, below `checkpoint`. `weights.safetensors` holds whole tensors. Where a
state is cut into n parts there are n files, `weights-00001-of-0000n.safetensors` and so on: each
holds rows of the tensors, and as metadata under "pieces" the first row and the whole's number of
rows by name. Any number of processes reads either: each takes the rows that are its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import explain_os_error
from rectiflow.distributed.sharding import Piece

SUFFIX = ".safetensors"
_PIECES = "pieces"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.touch()
        mode = path.stat().st_mode
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(contiguous, path, dict(metadata) if metadata else None)
        path.chmod(mode)  # it leaves files that only their owner can read
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
    except safetensors.SafetensorError as error:  # how it reports a full disk
        raise UserError(
            f"cannot write {path}: {error}; free some space or choose another place"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut or damaged.
    """
    with _explained(path):
        return safetensors.torch.load_file(path)


def write_pieces(
    folder: Path, stem: str, pieces: Mapping[str, Piece], *, part: int, num_parts: int
) -> Path:
    """Write the pieces of part number `part` (from 0); returns the file.

    What is not cut is in every part; the first one writes it.

    Raises:
        UserError: it cannot be written.
    """
    if num_parts == 1:
        path = folder / f"{stem}{SUFFIX}"
        write_tensors(path, {name: piece.values for name, piece in pieces.items()})
        return path
    path = folder / f"{stem}-{part + 1:05d}-of-{num_parts:05d}{SUFFIX}"
    # An empty part of a tensor of few rows stands for nothing.
    written = {
        name: piece
        for name, piece in pieces.items()
        if (part == 0 if piece.is_whole else len(piece.values))
    }
    places = {name: (piece.start, piece.shape[0]) for name, piece in written.items() if piece.shape}
    values = {name: piece.values for name, piece in written.items()}
    write_tensors(path, values, metadata={_PIECES: json.dumps(places)})
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Rows of a tensor in a file, from row `start` of the whole on."""

    file: safetensors.safe_open
    start: int
    outline: Tensor

    @property
    def stop(self) -> int:
        return self.start + len(self.outline)


class SavedTensors:
    """The tensors of one file, or of the files that hold their parts; read when asked for.

    Raises:
        CheckpointError: a file is missing, cut or damaged, or a tensor is not there from its first
            row to its last.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sources: dict[str, list[_Source]] = {}
        num_rows: dict[str, int] = {}
        for path in paths:
            with _explained(path):
                file = safetensors.safe_open(path, framework="pt")
                places = json.loads((file.metadata() or {}).get(_PIECES, "{}"))
                for name in file.keys():  # noqa: SIM118, it is no mapping
                    start, num_rows[name] = places.get(name, (0, -1))
                    source = _Source(file=file, start=start, outline=_outline(file, name))
                    self._sources.setdefault(name, []).append(source)
        for name, sources in self._sources.items():
            sources.sort(key=lambda source: source.start)
            if num_rows[name] >= 0 and not _is_complete(sources, num_rows[name]):
                raise CheckpointError(
                    f"{paths[0]}: tensor {name!r} is not whole in it and the files beside it; "
                    "fetch or make them again"
                )

    @classmethod
    def of(cls, folder: Path, stem: str) -> SavedTensors:
        """Those of a folder's files `stem`.

        Raises:
            CheckpointError: as above.
        """
        parts = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}{re.escape(SUFFIX)}")
        cut = sorted(path for path in folder.iterdir() if parts.fullmatch(path.name))
        return cls(cut or [folder / f"{stem}{SUFFIX}"])

    def outlines(self) -> dict[str, Tensor]:
        """Tensors by name that have shape and type, and no values."""
        outlines: dict[str, Tensor] = {}
        for name, sources in self._sources.items():
            first = sources[0].outline
            shape = (sources[-1].stop, *first.shape[1:]) if first.ndim else ()
            outlines[name] = first.new_empty(shape)
        return outlines

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A whole tensor, or `rows` (first, number) of it."""
        sources = self._sources[name]
        if rows is None and len(sources) == 1:
            return sources[0].file.get_tensor(name)
        first, number = (0, sources[-1].stop) if rows is None else rows
        found = [
            source.file.get_slice(name)[
                max(first - source.start, 0) : first + number - source.start
            ]
            for source in sources
            if source.start < first + number and first < source.stop
        ]
        if not found:
            return sources[0].file.get_slice(name)[0:0]
        return found[0] if len(found) == 1 else torch.cat(found)

    def read_all(self) -> dict[str, Tensor]:
        """All tensors, whole."""
        return {name: self.read(name) for name in self._sources}


def _outline(file: safetensors.safe_open, name: str) -> Tensor:
    inside = file.get_slice(name)
    shape = inside.get_shape()
    sample = inside[0:0] if shape else file.get_tensor(name)
    return torch.empty(shape, dtype=sample.dtype, device="meta")


def _is_complete(sources: Iterable[_Source], num_rows: int) -> bool:
    reached = 0
    for source in sources:
        if source.start != reached:
            return False
        reached = source.stop
    return reached == num_rows


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        path.open("rb").close()  # says better than safetensors why a file cannot be opened
        yield
    except OSError as error:
        raise CheckpointError(str(explain_os_error(error, path, "read"))) from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is cut or damaged ({error}); fetch or make it again"
        ) from error
