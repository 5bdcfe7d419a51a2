"""Reads a latent store: rows by number, checked before use, without any encoder at hand.

On the walk of a sample: encode → here → loader. What fits into memory is read once; a larger store
stays memory-mapped, and each shard is checked when it is first touched.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from rectiflow.data.records import EncodedBatch
from rectiflow.data.shards import ShardRecord, check_shard_size, damaged_shard, open_shard
from rectiflow.data.store_format import ColumnFormat, read_header, read_index

MAX_BYTES_IN_MEMORY = 4 * 2**30
#: Far below the mappings that Linux grants a process (65,530), for all stores that it reads.
MAX_OPEN_SHARDS = 4096
#: What training reads of a row of latents; the last of them only some stores have.
LATENT_COLUMNS = ("mean", "logvar", "features")
#: What the index says of a sample, besides its captions; not where its rows lie or who made it.
_CONTENT_COLUMNS = (
    *("file", "content_hash", "height_px", "width_px"),
    *("crop_top_px", "crop_left_px", "crop_height_px", "crop_width_px"),
)

_Formats = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

#: Stands for the empty prompt among the positions of caption variants.
EMPTY_PROMPT = -1


class LatentStore:
    """A finished store; `len`, `read` and facts about it.

    Args:
        path: the store's folder.
        max_bytes_in_memory: a store up to this size is read into memory with the first row.

    Raises:
        StoreError: no finished store there, another format, or missing, cut or changed files.
            What a shard holds is checked before its first row is used.
    """

    def __init__(self, path: Path | str, *, max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY) -> None:
        self.path = Path(path)
        self.header = header = read_header(self.path)
        for record in (*header.latent_shards, *header.text_shards):
            check_shard_size(self.path, record)
        self.index = read_index(self.path, header)
        self.variants = header.variants
        self.latent_rows: Int[Tensor, " n"] = _column(self.index, "latent_row")
        # The place among `latent_shapes` of each sample's shape.
        self.buckets: Int[Tensor, " n"] = self._row_buckets()[self.latent_rows]
        # Row of each sample's caption by variant; -1 where it has none.
        self.text_rows: Int[Tensor, "n v"] = torch.stack(
            [_column(self.index, f"text_row.{variant}") for variant in self.variants], dim=1
        )
        num_bytes = sum(s.num_bytes for s in (*header.latent_shards, *header.text_shards))
        in_memory = num_bytes <= max_bytes_in_memory
        open_shards = OpenShards(self.path)
        self._latents = {
            bucket: ShardTable(
                open_shards,
                [shard for shard in header.latent_shards if shard.bucket == bucket],
                {name: columns[name] for name in LATENT_COLUMNS if name in columns},
                in_memory=in_memory,
            )
            for bucket, columns in enumerate(header.columns_by_bucket)
            if columns
        }
        # A row's number among those of its bucket, where rows are numbered over all shards.
        self._rows_in_bucket = _count_alike(self._row_buckets())
        self._text = ShardTable(
            open_shards, header.text_shards, header.text_columns, in_memory=in_memory
        )

    def __len__(self) -> int:
        return self.header.num_samples

    @property
    def content_hashes(self) -> list[str]:
        """What identifies each sample's picture: the SHA-256 of its file, in hexadecimal."""
        return self.index["content_hash"].to_pylist()

    @cached_property
    def fingerprint(self) -> str:
        """Identifies what the samples are: pictures and captions by file, what encoded them, sizes.

        Rows and shards are no part of it: two stores of the same samples, whatever the order they
        were encoded in, are the same data.
        """
        header = self.header
        made_by = {
            "autoencoder": header.autoencoder,
            "text": header.text,
            "features": header.features,
            "resolution_px": header.resolution_px,
            "buckets": [str(bucket.size) for bucket in header.buckets],
        }
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
        for name in (*_CONTENT_COLUMNS, *(f"caption.{variant}" for variant in self.variants)):
            values = json.dumps(self.index[name].to_pylist())
            digest.update(f"|{name}:{len(values)}:{values}".encode())
        return digest.hexdigest()

    @property
    def latent_shapes(self) -> dict[int, tuple[int, int, int]]:
        """(channels, height, width) of the latents of each bucket that has any; 0 if all are alike.

        The numbers are those of `buckets`.
        """
        shapes: dict[int, tuple[int, int, int]] = {}
        for bucket in self._latents:
            channels, height, width = self.header.columns_by_bucket[bucket]["mean"].shape
            shapes[bucket] = channels, height, width
        return shapes

    def read(
        self, indices: Int[Tensor, " b"], variants: Int[Tensor, " b"] | None = None
    ) -> EncodedBatch:
        """Samples of one bucket by number, each with one of its captions.

        Args:
            indices: sample numbers in [0, len).
            variants: for each sample a position in `self.variants`, or `EMPTY_PROMPT` for the text
                states of ""; by default its first caption.

        Raises:
            IndexError: a number outside the store, or a caption that the sample does not have.
            ValueError: samples of several buckets, whose latents do not stack.
            StoreError: a shard is missing, cut or changed.
        """
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < len(self)):
            raise IndexError(f"sample numbers must be in [0, {len(self)}), got {indices.tolist()}")
        available = self.text_rows[indices]
        if variants is None:
            variants = (available >= 0).int().argmax(dim=1)
        text_rows = available.gather(1, variants[:, None].clamp(min=0)).squeeze(1)
        text_rows = torch.where(variants == EMPTY_PROMPT, self.header.empty_prompt_row, text_rows)
        if (text_rows < 0).any():
            lacking = int(indices[text_rows < 0][0])
            raise IndexError(
                f"sample {lacking} ({self.file(lacking)}) lacks the caption variant asked for"
            )
        buckets = self.buckets[indices].unique().tolist() or [next(iter(self._latents))]
        if len(buckets) > 1:
            shapes = [self.latent_shapes[bucket] for bucket in buckets]
            raise ValueError(
                f"samples of the shapes {shapes} do not make one batch; read a bucket at a time"
            )
        rows = self._rows_in_bucket[self.latent_rows[indices]]
        latents = self._latents[buckets[0]].gather(rows)
        return EncodedBatch(
            x0_mean=latents["mean"],
            x0_logvar=latents["logvar"],
            encoded_text=self._text.gather(text_rows),
            indices=indices,
            features=latents.get("features"),
        )

    def _row_buckets(self) -> Int[Tensor, " m"]:
        """Of each row of latents its bucket's number."""
        shards = self.header.latent_shards
        return torch.tensor(
            [shard.bucket for shard in shards], dtype=torch.int64
        ).repeat_interleave(torch.tensor([shard.num_rows for shard in shards], dtype=torch.int64))

    def file(self, index: int) -> str:
        """The picture's path inside the folder that was encoded."""
        return self.index["file"][index].as_py()

    def captions(self, index: int) -> dict[str, str]:
        """The captions of a sample by variant."""
        texts = {v: self.index[f"caption.{v}"][index].as_py() for v in self.variants}
        return {variant: text for variant, text in texts.items() if text is not None}


class OpenShards:
    """The shards of a store that are mapped: those used last, and whatever is still referred to.

    Each is hashed when it is first opened. Threads may share one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # In the order of their use.
        self._mapped: dict[str, dict[str, Tensor]] = {}
        self._checked: set[str] = set()
        self._lock = threading.Lock()

    def get(self, record: ShardRecord, formats: _Formats) -> dict[str, Tensor]:
        """A shard's columns, memory-mapped.

        Raises:
            StoreError: it is missing, cut or changed, or has not the columns of these formats.
        """
        with self._lock:
            shard = self._mapped.pop(record.file, None) or self.open(record, formats)
            self._mapped[record.file] = shard
            if len(self._mapped) > MAX_OPEN_SHARDS:
                # Its tensors keep it mapped for those who hold one.
                del self._mapped[next(iter(self._mapped))]
            return shard

    def open(self, record: ShardRecord, formats: _Formats) -> dict[str, Tensor]:
        """The same for one use, after which it is mapped no more.

        Raises:
            StoreError: as `get`.
        """
        is_checked = record.file in self._checked
        shard = open_shard(self._folder, record, is_checked=is_checked)
        _check_columns(self._folder / record.file, shard, record.num_rows, formats)
        self._checked.add(record.file)
        return shard


def _check_columns(
    path: Path, shard: Mapping[str, Tensor], num_rows: int, formats: _Formats
) -> None:
    for name, (dtype, shape) in formats.items():
        column = shard.get(name)
        if column is None or (column.dtype, column.shape) != (dtype, (num_rows, *shape)):
            found = "none" if column is None else f"{column.dtype} {list(column.shape)}"
            raise damaged_shard(
                path, f"store.json says {dtype} {[num_rows, *shape]} of its {name}, it has {found}"
            )


class ShardTable:
    """Rows spread over shards, gathered into one tensor a column."""

    def __init__(
        self,
        open_shards: OpenShards,
        records: Sequence[ShardRecord],
        columns: Mapping[str, ColumnFormat],
        *,
        in_memory: bool,
    ) -> None:
        self._shards, self._records, self._in_memory = open_shards, records, in_memory
        self._formats: _Formats = {
            name: (getattr(torch, column.dtype), column.shape) for name, column in columns.items()
        }
        counts = torch.tensor([record.num_rows for record in records])
        self._starts = counts.cumsum(0) - counts
        self._num_rows = int(counts.sum())
        self._whole: dict[str, Tensor] | None = None
        self._lock = threading.Lock()

    def gather(self, rows: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Rows by number, in the order asked for, as columns [b, ...].

        Raises:
            StoreError: a shard is missing, cut or changed.
        """
        if self._in_memory:
            whole = self._read_whole()
            return {name: whole[name].index_select(0, rows) for name in self._formats}
        gathered = self._empty(len(rows))
        shard_of_row = torch.bucketize(rows, self._starts, right=True) - 1
        for number in shard_of_row.unique().tolist():
            shard = self._shards.get(self._records[number], self._formats)
            places = (shard_of_row == number).nonzero().squeeze(1)
            local = rows[places] - self._starts[number]
            for name, column in gathered.items():
                column[places] = shard[name].index_select(0, local)
        return gathered

    def _read_whole(self) -> dict[str, Tensor]:
        with self._lock:
            if self._whole is None:
                whole = self._empty(self._num_rows)
                for record, start in zip(self._records, self._starts.tolist()):
                    shard = self._shards.open(record, self._formats)
                    for name, column in whole.items():
                        column[start : start + record.num_rows] = shard[name]
                self._whole = whole
            return self._whole

    def _empty(self, num_rows: int) -> dict[str, Tensor]:
        return {
            name: torch.empty(num_rows, *shape, dtype=dtype)
            for name, (dtype, shape) in self._formats.items()
        }


def _column(index: pa.Table, name: str) -> Int[Tensor, " n"]:
    values = index[name].fill_null(-1).to_numpy()
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _count_alike(kinds: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """For each place, how many places before it hold the same number."""
    counts = torch.empty_like(kinds)
    for kind in kinds.unique():
        places = (kinds == kind).nonzero().squeeze(1)
        counts[places] = torch.arange(len(places))
    return counts
