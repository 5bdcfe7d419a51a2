"""One file of a latent store: rows of tensors in a safetensors file that describes itself.

Every shard carries, besides its columns, a `key` for each row (SHA-256 of the picture's bytes or of
the caption), who made it, and a digest of its tensors. So a run that was killed before it could
write the index loses nothing: the next one reads the keys back and checks the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rectiflow.base.config import LATER
from rectiflow.base.errors import StoreError
from rectiflow.base.files import atomic_write, explain_os_error, sha256_file

KEY = "key"
_METADATA = "rectiflow"
_AGAIN = "remove it and run the encoding again: only its rows are made anew"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard as store.json lists it.

    `bucket` says which of the store's buckets its latents have the shape of, by its place.
    """

    file: str
    num_rows: int
    num_bytes: int
    sha256: str
    bucket: int = field(default=0, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """A shard found on disk: its record, the keys of its rows in order, and its tensors."""

    record: ShardRecord
    keys: tuple[str, ...]
    tensors: dict[str, Tensor]


def write_shard(
    path: Path, keys: list[str], columns: Mapping[str, Tensor], made_by: Mapping[str, Any]
) -> ShardRecord:
    """Write rows to a new shard, atomically.

    Args:
        path: the file.
        keys: SHA-256 in hexadecimal, one for each row.
        columns: tensors [rows, ...] by name.
        made_by: what the rows are a function of, besides their keys.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {name: column.contiguous() for name, column in columns.items()}
    tensors[KEY] = torch.tensor([list(bytes.fromhex(key)) for key in keys], dtype=torch.uint8)
    # One metadata key: safetensors does not promise an order for several.
    metadata = {"made_by": dict(made_by), "digest": _digest(tensors)}
    data = save(tensors, metadata={_METADATA: json.dumps(metadata, sort_keys=True)})
    with atomic_write(path) as file:
        file.write(data)
    return ShardRecord(
        file=path.name,
        num_rows=len(keys),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def adopt_shard(path: Path, made_by: Mapping[str, Any]) -> ShardContent:
    """Read a shard back by what it says of itself, to continue a store.

    Raises:
        StoreError: it is damaged, or `made_by` differs.
    """
    tensors, metadata = _read(path)
    if metadata["made_by"] != dict(made_by):
        theirs, ours = metadata["made_by"], dict(made_by)
        changed = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
        raise StoreError(
            f"{path.parent} was encoded with another {' and '.join(changed)}: "
            + "; ".join(
                f"{n} {_short(theirs.get(n))} there, {_short(ours.get(n))} here" for n in changed
            )
            + ". Encode into a new folder"
        )
    if metadata["digest"] != _digest(tensors):
        raise damaged_shard(path, "its content does not match its digest")
    keys = tensors.pop(KEY, torch.empty(0))
    if keys.dtype != torch.uint8 or keys.shape[1:] != (hashlib.sha256().digest_size,):
        raise damaged_shard(path, "it has no key for each row")
    if any(column.shape[:1] != keys.shape[:1] for column in tensors.values()):
        raise damaged_shard(path, "its columns differ in their number of rows")
    record = ShardRecord(
        file=path.name,
        num_rows=len(keys),
        num_bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )
    return ShardContent(record=record, keys=_hex_keys(keys.numpy()), tensors=tensors)


def open_shard(folder: Path, record: ShardRecord, *, is_checked: bool = False) -> dict[str, Tensor]:
    """A shard's columns, memory-mapped, after its bytes were checked against store.json.

    With `is_checked` only its size is compared: its bytes were checked before.

    Raises:
        StoreError: the shard is missing, cut or changed, or there is no memory to map it.
    """
    path = folder / record.file
    check_shard_size(folder, record)
    if not is_checked and sha256_file(path) != record.sha256:
        raise damaged_shard(path, "its SHA-256 is not the one in store.json, so some bytes changed")
    tensors, _ = _read(path)
    return tensors


def check_shard_size(folder: Path, record: ShardRecord) -> None:
    """Pass when the shard is there in its full length, without reading it.

    Raises:
        StoreError: it is missing or cut.
    """
    path = folder / record.file
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is missing; run the encoding again: only its rows are made anew"
        ) from error
    except OSError as error:
        raise StoreError(str(explain_os_error(error, path, "read"))) from error
    if num_bytes != record.num_bytes:
        raise damaged_shard(
            path, f"it has {num_bytes:,} bytes, store.json says {record.num_bytes:,}"
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Any = json.loads((file.metadata() or {})[_METADATA])
            found = {name: metadata[name] for name in ("made_by", "digest")}
        if not isinstance(found["made_by"], dict):
            raise TypeError("it does not say who made it")
        return load_file(path), found
    except OSError as error:
        raise StoreError(str(explain_os_error(error, path, "read"))) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged_shard(path, f"it is not a shard of a store, or cut ({error})") from error
    except (MemoryError, RuntimeError) as error:  # torch tells of a failed mmap by the latter
        raise StoreError(
            f"cannot map {path} into memory ({error or 'out of memory'}); close other programs, or "
            "raise the system's limits on memory and on mappings (vm.max_map_count)"
        ) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}:{tensor.dtype}:{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hex_keys(keys: UInt8[np.ndarray, "n 32"]) -> tuple[str, ...]:
    return tuple(row.tobytes().hex() for row in keys)


def damaged_shard(path: Path, problem: str) -> StoreError:
    """The error for a shard that is not what it should be, and what to do."""
    return StoreError(f"{path} is damaged: {problem}; {_AGAIN}")


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 12 else str(value)
