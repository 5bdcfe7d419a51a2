"""The files of a latent store and what store.json and index.parquet say.

STORE/store.json                  `StoreHeader`, written last
STORE/index.parquet               one row a picture, by file name (`INDEX_FIELDS`)
STORE/latents-00000.safetensors   mean, logvar, size_px, crop_px, and features if asked for: one
                                  row a distinct picture, those of one shard all of one bucket
STORE/text-00000.safetensors      the text encoders' states: one row a distinct caption
STORE/quarantine.jsonl            what was rejected, and why
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rectiflow.base.config import LATER, from_json
from rectiflow.base.errors import ConfigError, StoreError
from rectiflow.base.files import read_json, sha256_file
from rectiflow.data.buckets import Bucket
from rectiflow.data.shards import ShardRecord
from rectiflow.models.parts_source import PartsSource

FORMAT = 1
HEADER_FILE = "store.json"
INDEX_FILE = "index.parquet"
QUARANTINE_FILE = "quarantine.jsonl"
LATENTS = "latents"
TEXT = "text"

#: T5's states outgrow float16 in the published sizes; the others keep more digits in it.
TEXT_DTYPES = {
    "clip_l.context": torch.float16,
    "clip_l.pooled": torch.float16,
    "clip_g.context": torch.float16,
    "clip_g.pooled": torch.float16,
    "t5.context": torch.bfloat16,
}
LATENT_DTYPE = FEATURE_DTYPE = torch.float16

#: The index's columns; each caption variant V adds caption.V (text) and text_row.V (or null).
INDEX_FIELDS = [
    pa.field("file", pa.string(), nullable=False),
    pa.field("content_hash", pa.string(), nullable=False),
    pa.field("latent_row", pa.int64(), nullable=False),
    pa.field("height_px", pa.int32(), nullable=False),
    pa.field("width_px", pa.int32(), nullable=False),
    pa.field("crop_top_px", pa.int32(), nullable=False),
    pa.field("crop_left_px", pa.int32(), nullable=False),
    pa.field("crop_height_px", pa.int32(), nullable=False),
    pa.field("crop_width_px", pa.int32(), nullable=False),
    pa.field("origin", pa.string()),
    pa.field("license", pa.string()),
]


@dataclass(frozen=True, kw_only=True)
class ColumnFormat:
    """Type and shape of one row of a column, such as float16 [16, 8, 8]."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StoredBucket:
    """The pictures of one size in a store: the size, and its columns where it has rows."""

    size: Bucket
    columns: dict[str, ColumnFormat]


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """store.json. `autoencoder` and `text` are the fingerprints of what made the rows.

    `features` is that of the image encoder whose features of patches the rows have, if they have.

    Latents of one shape, squares of `resolution_px`, have `latent_columns`; where there are
    `buckets`, each has its own, and `latent_columns` is empty.

    `empty_prompt_row` is the text row of "", which every store has for guidance to contrast with.

    `parts` says where autoencoder and text encoders were, None for those that ship.
    """

    format: int
    resolution_px: int
    autoencoder: str
    text: dict[str, str]
    world: str | None
    source: str
    variants: tuple[str, ...]
    empty_prompt_row: int
    num_samples: int
    index_sha256: str
    latent_columns: dict[str, ColumnFormat]
    text_columns: dict[str, ColumnFormat]
    latent_shards: tuple[ShardRecord, ...]
    text_shards: tuple[ShardRecord, ...]
    buckets: tuple[StoredBucket, ...] = field(default=(), metadata=LATER)
    features: str | None = field(default=None, metadata=LATER)
    parts: PartsSource | None = field(default=None, metadata=LATER)

    @property
    def columns_by_bucket(self) -> tuple[dict[str, ColumnFormat], ...]:
        """The latents' columns of each bucket; of the squares, where there are none."""
        return tuple(bucket.columns for bucket in self.buckets) or (self.latent_columns,)

    def check_made_by(
        self, *, autoencoder: str | None = None, text: Mapping[str, str] | None = None
    ) -> None:
        """Pass when the encoders at hand, given by fingerprint, are those that made the store.

        Raises:
            StoreError: they are not; the text names which.
        """
        if autoencoder is not None and autoencoder != self.autoencoder:
            raise _other_encoder("autoencoder", self.autoencoder, autoencoder)
        for name in sorted({*self.text, *(text or {})} if text is not None else ()):
            theirs, ours = self.text.get(name), cast(Mapping[str, str], text).get(name)
            if theirs != ours:
                raise _other_encoder(f"text encoder {name}", theirs, ours)


def read_header(store: Path) -> StoreHeader:
    """The header of a finished store.

    Raises:
        StoreError: no store there, an unfinished one, one of another format, or one whose parts do
            not go together.
        UserError: store.json is unreadable or not JSON.
        ConfigError: it has keys or types that this format does not have.
    """
    path = store / HEADER_FILE
    if not path.is_file():
        if any(store.glob("*.safetensors")):
            raise StoreError(
                f"the store {store} is unfinished; run the encoding again, it continues there"
            )
        raise StoreError(f"there is no latent store in {store}; rectiflow encode makes one")
    data: Any = read_json(path)
    found = cast(dict[str, Any], data).get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise StoreError(
            f"{path} has format {found!r}, this version reads format {FORMAT}; encode the pictures "
            "again into a new folder"
        )
    try:
        header = from_json(StoreHeader, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check_header(path, header)
    return header


def is_shard_name(name: str, kind: str) -> bool:
    """Whether a file is called as a shard of latents or text is, which names no other folder."""
    return re.fullmatch(rf"{kind}-[0-9]{{5,}}\.safetensors", name) is not None


def _check_header(path: Path, header: StoreHeader) -> None:
    """Pass when a header is one that encoding may have written; a foreign or edited one may not."""

    def refuse(problem: str) -> StoreError:
        return StoreError(f"{path} {problem}; encode the pictures again into a new folder")

    if not header.variants or len(set(header.variants)) < len(header.variants):
        raise refuse(f"has {list(header.variants)} as caption variants, not one of each at least")
    # T5 may have no token.
    for least, columns in ((0, header.text_columns), *((1, c) for c in header.columns_by_bucket)):
        for name, column in columns.items():
            is_dtype = isinstance(getattr(torch, column.dtype, None), torch.dtype)
            if not is_dtype or min(column.shape, default=1) < least:
                raise refuse(f"has {column.dtype!r:.40} {list(column.shape)!s:.40} as {name!r:.40}")
    names: set[str] = set()
    for kind, shards in ((LATENTS, header.latent_shards), (TEXT, header.text_shards)):
        tables = header.columns_by_bucket if kind == LATENTS else (header.text_columns,)
        for shard in shards:
            if not is_shard_name(shard.file, kind) or shard.file in names:
                raise refuse(f"lists {shard.file!r:.60}, no shard of {kind} or one listed already")
            names.add(shard.file)
            columns = tables[shard.bucket] if 0 <= shard.bucket < len(tables) else {}
            if not columns:
                raise refuse(f"says that {shard.file} is of bucket {shard.bucket}, which has none")
            if shard.num_rows < 1 or shard.num_rows * _row_bytes(columns) > shard.num_bytes:
                raise refuse(
                    f"says that {shard.file} has {shard.num_rows} rows in {shard.num_bytes} bytes"
                )
            if kind == LATENTS:
                mean, logvar = (columns.get(name) for name in ("mean", "logvar"))
                if mean is None or mean != logvar or len(mean.shape) != 3:
                    raise refuse(f"has no latents (channels, height, width) for {shard.file}")
    num_text_rows = _num_rows(header.text_shards)
    if not 0 <= header.empty_prompt_row < num_text_rows:
        raise refuse(
            f"has the empty prompt in row {header.empty_prompt_row} of {num_text_rows} text rows"
        )


def _row_bytes(columns: Mapping[str, ColumnFormat]) -> int:
    return sum(
        math.prod(column.shape) * getattr(torch, column.dtype).itemsize
        for column in columns.values()
    )


def _num_rows(shards: tuple[ShardRecord, ...]) -> int:
    return sum(shard.num_rows for shard in shards)


def read_index(store: Path, header: StoreHeader) -> pa.Table:
    """The index that a store's header describes.

    Raises:
        StoreError: it is missing, another one, or names rows that the store does not have.
    """
    path = store / INDEX_FILE
    if not path.is_file() or sha256_file(path) != header.index_sha256:
        raise StoreError(
            f"{path} is missing, or is not the one that store.json describes; run the encoding "
            "again, it completes the store"
        )
    schema = index_schema(header.variants)
    try:
        index = pq.read_table(path, schema=schema)
        _check_index(index, header)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(
            f"{path} does not go together with store.json ({reason:.200}); encode the pictures "
            "again into a new folder"
        ) from error
    return index


def _check_index(index: pa.Table, header: StoreHeader) -> None:
    if len(index) != header.num_samples:
        raise ValueError(f"it has {len(index)} samples, store.json says {header.num_samples}")
    for column in INDEX_FIELDS:
        if not column.nullable and index[column.name].null_count:
            raise ValueError(f"it has samples without {column.name}")
    for name, num_rows in (
        ("latent_row", _num_rows(header.latent_shards)),
        *((f"text_row.{v}", _num_rows(header.text_shards)) for v in header.variants),
    ):
        rows = index[name].drop_null().to_numpy()
        if len(rows) and not 0 <= rows.min() <= rows.max() < num_rows:
            raise ValueError(
                f"its {name} goes from {rows.min()} to {rows.max()}, the store has {num_rows}"
            )


def index_schema(variants: tuple[str, ...]) -> pa.Schema:
    """The index's columns for these caption variants."""
    captions = [pa.field(f"caption.{variant}", pa.string()) for variant in variants]
    rows = [pa.field(f"text_row.{variant}", pa.int64()) for variant in variants]
    return pa.schema([*INDEX_FIELDS, *captions, *rows])


def _other_encoder(part: str, theirs: str | None, ours: str | None) -> StoreError:
    def spell(fingerprint: str | None) -> str:
        return "none" if fingerprint is None else f"{fingerprint[:12]}…"

    return StoreError(
        f"the store was encoded by another {part} (fingerprint {spell(theirs)}) than the one at "
        f"hand ({spell(ours)}); encode the pictures again into a new folder"
    )
