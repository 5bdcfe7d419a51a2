"""Writes a latent store, or continues one: shards first, then the index, store.json last.

A run killed at any moment leaves whole shards, and the former index and header or none; or, in the
moment between these two, an index that is not the header's, which no reader takes. The next run
reads the keys of all shards back, encodes only what is missing, and writes both.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rectiflow.base.config import save_config
from rectiflow.base.errors import StoreError, UserError
from rectiflow.base.files import atomic_write, explain_os_error
from rectiflow.data.buckets import Bucket
from rectiflow.data.curation import write_quarantine
from rectiflow.data.records import Rejection
from rectiflow.data.shards import ShardRecord, adopt_shard, write_shard
from rectiflow.data.store_format import (
    FORMAT,
    HEADER_FILE,
    INDEX_FILE,
    LATENTS,
    QUARANTINE_FILE,
    TEXT,
    ColumnFormat,
    StoredBucket,
    StoreHeader,
    index_schema,
    is_shard_name,
    read_header,
)
from rectiflow.models.parts_source import PartsSource

#: What file browsers leave in any folder that somebody looks at.
_OF_FILE_BROWSERS = (".DS_Store", "Thumbs.db", "desktop.ini")


class ShardSeries:
    """The shards of one kind, with the row at which each key lies; grows by `append`.

    Rows are numbered over all shards in the order of their files. Those of one shard have the same
    shapes; rows of other shapes go into other shards.

    Raises:
        StoreError: a shard on disk is damaged, or was made by something else.
    """

    def __init__(
        self, folder: Path, kind: str, made_by: Mapping[str, Any], *, max_shard_bytes: int
    ) -> None:
        self.rows: dict[str, int] = {}
        self.records: list[ShardRecord] = []
        # What the rows of each shard look like.
        self.columns: list[dict[str, ColumnFormat]] = []
        # What the index repeats of every row: the integer columns.
        self.facts: dict[str, list[list[int]]] = {}
        self._folder, self._kind, self._made_by = folder, kind, made_by
        self._max_shard_bytes = max_shard_bytes
        self._buffered: dict[str, Mapping[str, Tensor]] = {}
        self._num_buffered_bytes = 0
        self._num_rows = 0
        for path in sorted(folder.glob(f"{kind}-*.safetensors"), key=_number):
            content = adopt_shard(path, made_by)
            self._take(content.record, content.keys, content.tensors)

    def __contains__(self, key: str) -> bool:
        return key in self.rows or key in self._buffered

    def append(self, key: str, row: Mapping[str, Tensor]) -> None:
        """Add one row; what is buffered is written when it would fill a shard."""
        self._buffered[key] = row
        self._num_buffered_bytes += sum(tensor.nbytes for tensor in row.values())
        if self._num_buffered_bytes >= self._max_shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            UserError: the shard cannot be written.
        """
        alike: dict[tuple[torch.Size, ...], list[str]] = {}
        for key, row in self._buffered.items():
            alike.setdefault(tuple(tensor.shape for tensor in row.values()), []).append(key)
        for keys in alike.values():
            rows = [self._buffered[key] for key in keys]
            columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            number = _number(Path(self.records[-1].file)) + 1 if self.records else 0
            path = self._folder / f"{self._kind}-{number:05d}.safetensors"
            record = write_shard(path, keys, columns, self._made_by)
            self._take(record, keys, columns)
        self._buffered, self._num_buffered_bytes = {}, 0

    def _take(
        self, record: ShardRecord, keys: Iterable[str], columns: Mapping[str, Tensor]
    ) -> None:
        for offset, key in enumerate(keys):
            self.rows.setdefault(key, self._num_rows + offset)
        for name, column in columns.items():
            if column.dtype == torch.int32:
                self.facts.setdefault(name, []).extend(column.tolist())
        self._num_rows += record.num_rows
        self.records.append(record)
        self.columns.append(
            {
                name: ColumnFormat(
                    dtype=str(column.dtype).removeprefix("torch."), shape=tuple(column.shape[1:])
                )
                for name, column in sorted(columns.items())
            }
        )


class StoreWriter:
    """A store folder that is being written; get one from `open_store_writer`."""

    def __init__(
        self,
        path: Path,
        *,
        resolution_px: int,
        autoencoder: str,
        text: Mapping[str, str],
        max_shard_bytes: int,
        buckets: Mapping[tuple[int, ...], Bucket] | None = None,
        features: str | None = None,
        parts: PartsSource | None = None,
    ) -> None:
        self.path = path
        self._parts = parts
        self._resolution_px, self._autoencoder, self._text = resolution_px, autoencoder, dict(text)
        self._features = features
        self._buckets = dict(buckets or {})
        made_by: dict[str, Any] = {"autoencoder": autoencoder, "resolution_px": resolution_px}
        if self._buckets:
            made_by["buckets"] = [str(bucket) for bucket in self._buckets.values()]
        if features is not None:
            made_by["features"] = features
        self.latents = ShardSeries(path, LATENTS, made_by, max_shard_bytes=max_shard_bytes)
        self.text = ShardSeries(path, TEXT, self._text, max_shard_bytes=max_shard_bytes)

    def finish(
        self,
        index: list[dict[str, Any]],
        rejections: Iterable[Rejection],
        *,
        variants: tuple[str, ...],
        empty_prompt_row: int,
        source: str,
        world: str | None,
    ) -> StoreHeader:
        """Write what is buffered, the quarantine list, the index and, last, the header.

        Raises:
            UserError: a file cannot be written.
        """
        self.latents.flush()
        self.text.flush()
        write_quarantine(self.path / QUARANTINE_FILE, rejections)
        table = pa.Table.from_pylist(index, schema=index_schema(variants))
        data = io.BytesIO()
        pq.write_table(table, data)
        with atomic_write(self.path / INDEX_FILE) as file:
            file.write(data.getbuffer())
        header = StoreHeader(
            format=FORMAT,
            resolution_px=self._resolution_px,
            autoencoder=self._autoencoder,
            text=self._text,
            world=world,
            source=source,
            variants=variants,
            empty_prompt_row=empty_prompt_row,
            num_samples=len(index),
            index_sha256=hashlib.sha256(data.getbuffer()).hexdigest(),
            latent_columns={} if self._buckets else self.latents.columns[-1],
            text_columns=self.text.columns[-1],
            latent_shards=self._latent_shards(),
            text_shards=tuple(self.text.records),
            buckets=self._stored_buckets(),
            features=self._features,
            parts=self._parts,
        )
        save_config(self.path / HEADER_FILE, header)
        return header

    def _latent_shards(self) -> tuple[ShardRecord, ...]:
        """The shards, each with its bucket's place."""
        if not self._buckets:
            return tuple(self.latents.records)
        places = {sides: place for place, sides in enumerate(self._buckets)}
        return tuple(
            replace(record, bucket=places[columns["mean"].shape[1:]])
            for record, columns in zip(self.latents.records, self.latents.columns, strict=True)
        )

    def _stored_buckets(self) -> tuple[StoredBucket, ...]:
        """The buckets, each with the columns of its rows."""
        columns = {found["mean"].shape[1:]: found for found in self.latents.columns}
        return tuple(
            StoredBucket(size=bucket, columns=columns.get(sides, {}))
            for sides, bucket in self._buckets.items()
        )


@contextmanager
def open_store_writer(
    path: Path,
    *,
    resolution_px: int,
    autoencoder: str,
    text: Mapping[str, str],
    max_shard_bytes: int,
    buckets: Mapping[tuple[int, ...], Bucket] | None = None,
    features: str | None = None,
    parts: PartsSource | None = None,
) -> Generator[StoreWriter, None, None]:
    """Make a store folder, or open one to continue it, for one writer at a time.

    A folder that was made here and stayed empty is removed again. Where latents have several
    shapes, `buckets` maps their (height, width) to what was encoded. `features` is the fingerprint
    of an image encoder whose features the rows have. `parts` are noted in the header.

    Raises:
        StoreError: the store was made by other encoders or at another resolution, is damaged, or
            another run is writing it.
        UserError: the folder holds something else, or cannot be written.
    """
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, path, "write the store") from error
    try:
        with _locked(path):
            _prepare(path)
            if (path / HEADER_FILE).exists():
                header = read_header(path)
                _refuse_other_use(header, parts)
                header.check_made_by(autoencoder=autoencoder, text=text)
            yield StoreWriter(
                path,
                resolution_px=resolution_px,
                autoencoder=autoencoder,
                text=text,
                max_shard_bytes=max_shard_bytes,
                buckets=buckets,
                features=features,
                parts=parts,
            )
    finally:
        if is_new and not any(path.iterdir()):
            path.rmdir()


def _refuse_other_use(header: StoreHeader, parts: PartsSource | None) -> None:
    """The same encoders, used otherwise, are told by how they were used."""
    if header.parts is None or parts is None:
        return
    for name, option in (
        ("encoders", "--encoders"),
        ("t5_tokens", "--t5-tokens"),
        ("precision", "--precision"),
    ):
        then, now = _spell(getattr(header.parts, name)), _spell(getattr(parts, name))
        if then != now:
            raise StoreError(
                f"the store was encoded with {option} {then}, not {now}; ask for the same, or "
                "encode the pictures into a new folder"
            )


def _spell(value: object) -> str:
    return (",".join(value) or "none") if isinstance(value, tuple) else str(value)


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """Hold the folder's lock, which the system gives back when a process ends in any way."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"another run is writing the store {path}; wait until it ends"
            ) from error
        except OSError as error:  # a file system without locks
            raise explain_os_error(error, path, "lock the store") from error
        yield
    finally:
        os.close(descriptor)


def _prepare(path: Path) -> None:
    """Refuse foreign folders, find out whether writing works, and remove what killed runs left.

    Nothing is removed from a folder that is refused.
    """
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
        left_over: list[Path] = []
        for file in path.iterdir():
            if _is_left_over(file.name):
                left_over.append(file)
            elif not _is_ours(file.name) and file.name not in _OF_FILE_BROWSERS:
                raise UserError(
                    f"cannot write the store {path}: it holds {file.name!r}, which is no part of a "
                    "store; choose an empty folder"
                )
        for file in left_over:
            file.unlink()
    except OSError as error:
        raise explain_os_error(error, path, "write the store") from error


def _number(shard: Path) -> int:
    return int(shard.stem.rpartition("-")[2])


def _is_ours(name: str) -> bool:
    files = (HEADER_FILE, INDEX_FILE, QUARANTINE_FILE)
    return name in files or any(is_shard_name(name, kind) for kind in (LATENTS, TEXT))


def _is_left_over(name: str) -> bool:
    """Whether it is the temporary sibling of a file of ours that a killed run was writing."""
    of, mark, _ = name.rpartition(".tmp-")
    return bool(mark) and of.startswith(".") and _is_ours(of[1:])
