"""The header of a safetensors file, checked: names, types, shapes and places of its tensors.

Only the header is read. What is no whole safetensors file is refused in words; a pickle is known by
its first bytes and never opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rectiflow.base.errors import CheckpointError
from rectiflow.base.files import each_key_once, explain_os_error
from rectiflow.models.published.stored import DTYPES, ByteRange, FileBytes, StoredTensor

SUFFIX = ".safetensors"
#: The most that the safetensors library accepts as a header.
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a pickle as torch.save writes it (.pt, .pth, .ckpt, .bin)",
    b"\x80": "a pickle (.pt, .pth, .ckpt, .bin)",
}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class SafetensorsFile:
    """What a file's header says; the tensors' values stay in the file."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_safetensors(path: Path | str) -> SafetensorsFile:
    """Read and check the header of a safetensors file.

    Raises:
        UserError: the file is missing or unreadable.
        CheckpointError: it is cut, damaged, or of another format.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
            length = int.from_bytes(start[:8], "little")
            is_ours = len(start) > 8 and start[8:9] == b"{" and length <= _MAX_HEADER_BYTES
            if not is_ours:
                raise CheckpointError(_describe_other(path, start))
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    if len(text) < length:
        raise _cut_file(path, f"its header should have {length:,} bytes, {len(text):,} are there")
    try:
        entries = cast(dict[str, Any], json.loads(text, object_pairs_hook=each_key_once))
        metadata = {str(k): str(v) for k, v in entries.pop(_METADATA, {}).items()}
        source, start_of_data = FileBytes(path), 8 + length
        tensors = {
            name: _stored(name, entry, source, start_of_data) for name, entry in entries.items()
        }
        end = _end_of_data(tensors, start_of_data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: its header is not that of a safetensors file ({error!r:.200}); "
            "fetch the file again"
        ) from error
    if end != size:
        raise _cut_file(path, f"it should have {end:,} bytes by its header, it has {size:,}")
    return SafetensorsFile(path=path, tensors=tensors, metadata=metadata)


def _stored(
    name: str, entry: Mapping[str, Any], source: FileBytes, start_of_data: int
) -> StoredTensor:
    begin, end = _whole_numbers(entry["data_offsets"])
    if not isinstance(entry["dtype"], str):
        raise TypeError(f"{entry['dtype']!r} is no number type")
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{source.path}: {name!r:.200} stores numbers as {entry['dtype']!r:.20}, which "
            f"rectiflow does not read; give the file in one of {', '.join(DTYPES)}"
        )
    dtype, shape = DTYPES[entry["dtype"]], _whole_numbers(entry["shape"])
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for {entry['dtype']} {list(shape)}")
    part = ByteRange(source, start_of_data + begin, end - begin)
    return StoredTensor(dtype=dtype, shape=shape, ranges=(part,))


def _whole_numbers(values: Any) -> tuple[int, ...]:
    """A list of whole numbers from 0 on, and nothing that could be made into one."""
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list of whole numbers")
    for value in cast(list[Any], values):
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r} is no whole number")
    return tuple(cast(list[int], values))


def _end_of_data(tensors: Mapping[str, StoredTensor], start_of_data: int) -> int:
    """Where the file should end; the format has neither gaps nor overlaps."""
    end = start_of_data
    for part in sorted((t.ranges[0] for t in tensors.values()), key=lambda r: (r.offset, r.count)):
        if part.offset != end:
            raise ValueError("gaps or overlaps between tensors")
        end += part.count
    return end


def _cut_file(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is cut or damaged: {reason}; fetch the file again")


def _describe_other(path: Path, start: bytes) -> str:
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return (
                f"{path} is {name}, which can run any code when it is opened; rectiflow reads "
                "safetensors only: fetch the model in that format"
            )
    if start.startswith(_POINTER):
        return f"{path} is a pointer of git-lfs and holds no tensors; run `git lfs pull` there"
    if not start:
        return f"{path} is empty; fetch the file again"
    return (
        f"{path} is no safetensors file: it starts with {start[:8]!r}; give a {SUFFIX} file, or a "
        "folder that holds some"
    )
