"""Shards: what is written is read, byte for byte; any change to a file is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from rectiflow.base.errors import StoreError, UserError
from rectiflow.data import shards
from rectiflow.data.shards import ShardRecord, adopt_shard, open_shard, write_shard

MADE_BY = {"autoencoder": "a" * 64, "resolution_px": 64}
KEYS = [hashlib.sha256(bytes([i])).hexdigest() for i in range(5)]


def columns() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "mean": torch.randn(5, 3, generator=generator).half(),
        "t5.context": torch.randn(5, 2, 2, generator=generator).bfloat16(),
        "size_px": torch.arange(10, dtype=torch.int32).view(5, 2),
    }


def shard(folder: Path) -> ShardRecord:
    return write_shard(folder / "latents-00000.safetensors", KEYS, columns(), MADE_BY)


def test_round_trip(tmp_path: Path) -> None:
    record = shard(tmp_path)
    path = tmp_path / record.file
    assert record.num_bytes == path.stat().st_size
    read = open_shard(tmp_path, record)
    for name, column in columns().items():
        assert read[name].dtype == column.dtype
        assert torch.equal(read[name], column)
    content = adopt_shard(path, MADE_BY)
    assert content.record == record
    assert list(content.keys) == KEYS
    assert set(content.tensors) == set(columns())


def test_bytes_are_deterministic(tmp_path: Path) -> None:
    first = shard(tmp_path)
    data = (tmp_path / first.file).read_bytes()
    (tmp_path / first.file).unlink()
    assert shard(tmp_path) == first
    assert (tmp_path / first.file).read_bytes() == data


def test_flipped_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    record = shard(tmp_path)
    path = tmp_path / record.file
    data = path.read_bytes()
    for position in range(0, len(data), 37):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(
            StoreError, match=r"is damaged: its SHA-256 is not the one in store\.json"
        ):
            open_shard(tmp_path, record)


def test_flipped_byte_in_the_tensors_is_noticed_without_store_json(tmp_path: Path) -> None:
    path = tmp_path / shard(tmp_path).file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        StoreError, match="its content does not match its digest; remove it and run"
    ):
        adopt_shard(path, MADE_BY)


def test_cut_and_missing(tmp_path: Path) -> None:
    record = shard(tmp_path)
    path = tmp_path / record.file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"is damaged: it has 100 bytes, store\.json says"):
        open_shard(tmp_path, record)
    with pytest.raises(StoreError, match="it is not a shard of a store, or cut"):
        adopt_shard(path, MADE_BY)
    path.unlink()
    with pytest.raises(StoreError, match="is missing; run the encoding again: only its rows"):
        open_shard(tmp_path, record)


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = shard(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StoreError, match="cannot read .*: no permission"):
        open_shard(tmp_path, record)
    monkeypatch.undo()
    (tmp_path / record.file).unlink()
    with pytest.raises(StoreError, match="cannot read .*latents-00000"):
        adopt_shard(tmp_path / record.file, MADE_BY)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "latents-00000.safetensors"
    path.write_bytes(save({"mean": torch.zeros(1)}, metadata={"rectiflow": json.dumps([])}))
    with pytest.raises(StoreError, match="it is not a shard of a store"):
        adopt_shard(path, MADE_BY)
    path.write_bytes(save({"mean": torch.zeros(1)}))
    with pytest.raises(StoreError, match="it is not a shard of a store"):
        adopt_shard(path, MADE_BY)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors: tensors.pop("key"), "it has no key for each row"),
        (lambda tensors: tensors.update(key=torch.zeros(5, 31, dtype=torch.uint8)), "no key for"),
        (lambda tensors: tensors.update(key=torch.zeros(5, 32)), "it has no key for each row"),
        (lambda tensors: tensors.update(mean=torch.zeros(4, 3)), "differ in their number of rows"),
    ],
)
def test_a_shard_without_a_key_for_each_row(change: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / shard(tmp_path).file
    tensors = load(path.read_bytes())
    change(tensors)
    digest = shards._digest(tensors)  # pyright: ignore[reportPrivateUsage]
    metadata = {"made_by": MADE_BY, "digest": digest}
    path.write_bytes(save(tensors, metadata={"rectiflow": json.dumps(metadata)}))
    with pytest.raises(StoreError, match=text):
        adopt_shard(path, MADE_BY)


@pytest.mark.parametrize("text", ["[" * 20_000, '{"made_by": [], "digest": ""}', "{}", "3"])
def test_metadata_that_is_not_ours(text: str, tmp_path: Path) -> None:
    path = tmp_path / "latents-00000.safetensors"
    path.write_bytes(save({"mean": torch.zeros(1)}, metadata={"rectiflow": text}))
    with pytest.raises(StoreError, match="it is not a shard of a store"):
        adopt_shard(path, MADE_BY)


def test_made_by_others(tmp_path: Path) -> None:
    path = tmp_path / shard(tmp_path).file
    with pytest.raises(StoreError, match="another resolution_px: resolution_px 64 there, 32 here"):
        adopt_shard(path, MADE_BY | {"resolution_px": 32})
    with pytest.raises(
        StoreError, match=r"another autoencoder: autoencoder aaaaaaaaaaaa… there, b"
    ):
        adopt_shard(path, MADE_BY | {"autoencoder": "b"})


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*: a file is in the way"):
        shard(tmp_path / "file")
