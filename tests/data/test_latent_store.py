"""Reading a store: in memory and memory-mapped alike, and never a damaged or foreign one."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.parts import HashedText, encode, make_folder, tiny_autoencoder

from rectiflow.base.errors import ConfigError, StoreError, UserError
from rectiflow.base.files import sha256_file
from rectiflow.data import latent_store, shards
from rectiflow.data.latent_store import LatentStore, OpenShards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 samples in several shards; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("made")
    folder = make_folder(path / "folder", 24)
    (folder / "world.json").write_text('{"name": "small"}')
    encode(folder, path / "store", max_shard_bytes=4_000)
    return path / "store"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    for path in made.iterdir():
        (store / path.name).write_bytes(path.read_bytes())
    return store


def test_facts(made: Path) -> None:
    store = LatentStore(made)
    assert len(store) == 24
    assert store.variants == ("full", "terse")
    assert store.latent_shapes == {0: (16, 4, 4)}
    assert store.header.autoencoder == tiny_autoencoder().fingerprint()
    assert store.header.text == HashedText().fingerprints()
    assert (store.header.world, store.header.resolution_px) == ("small", 32)
    assert store.header.source.endswith("folder")
    assert store.header.text_columns["t5.context"].dtype == "bfloat16"
    assert store.header.text_columns["t5.context"].shape == (3, 20)
    assert len(store.header.latent_shards) > 3
    assert len(store.fingerprint) == 64
    assert store.captions(4) == {"full": "the full caption 4", "terse": "caption 1"}
    assert store.index["crop_height_px"].to_pylist() == [32] * 24


def test_memory_mapped_equals_in_memory(made: Path) -> None:
    indices = torch.tensor([23, 0, 7, 7, 12, 1])
    variants = torch.tensor([0, 1, 0, 1, 1, 0])
    one = LatentStore(made).read(indices, variants)
    other = LatentStore(made, max_bytes_in_memory=0).read(indices, variants)
    assert torch.equal(one.x0_mean, other.x0_mean)
    assert torch.equal(one.x0_logvar, other.x0_logvar)
    assert one.encoded_text.keys() == other.encoded_text.keys()
    for name, column in one.encoded_text.items():
        assert torch.equal(column, other.encoded_text[name])
    assert one.x0_mean.dtype == torch.float16
    assert len(one) == 6


def test_few_shards_are_mapped_at_a_time_and_each_is_hashed_once(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(
        shards, "sha256_file", lambda path: hashed.append(path) or sha256_file(path)
    )
    monkeypatch.setattr(latent_store, "MAX_OPEN_SHARDS", 2)
    store, whole = LatentStore(made, max_bytes_in_memory=0), LatentStore(made)
    expected = whole.read(torch.arange(24)).x0_mean
    num_hashed = len(hashed)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: store.read(torch.tensor([i % 24])).x0_mean, range(96)))
    assert torch.equal(torch.cat(found[-24:]), expected)
    assert len(hashed) - num_hashed == len(set(hashed[num_hashed:])) > 6
    mapped = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(rf"{re.escape(str(made))}/\S+", mapped))) <= 2


def test_a_shard_that_is_let_go_lasts_for_those_who_hold_it(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_store, "MAX_OPEN_SHARDS", 1)
    records, opened = LatentStore(made).header.latent_shards, OpenShards(made)
    held = opened.get(records[0], {})["mean"]
    before = held.clone()
    for record in records[1:]:
        opened.get(record, {})
    assert torch.equal(held, before)


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("unable to mmap 64 bytes")])
def test_no_room_for_another_shard(
    made: Path, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise failure

    monkeypatch.setattr(shards, "load_file", fail)
    with pytest.raises(StoreError, match=r"cannot map .* into memory \(.*max_map_count\)"):
        LatentStore(made).read(torch.arange(2))


def test_first_variant_by_default_and_empty_reads(made: Path) -> None:
    store = LatentStore(made)
    indices = torch.tensor([3, 5])
    by_default = store.read(indices).encoded_text["t5.context"]
    first = store.read(indices, torch.tensor([0, 0])).encoded_text["t5.context"]
    assert torch.equal(by_default, first)
    assert len(store.read(torch.tensor([], dtype=torch.int64))) == 0


@pytest.mark.parametrize("index", [-1, 24])
def test_sample_outside(made: Path, index: int) -> None:
    with pytest.raises(IndexError, match=r"sample numbers must be in \[0, 24\), got"):
        LatentStore(made).read(torch.tensor([0, index]))


def test_missing_variant(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 2)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    lines[1] = '{"file": "images/001.png", "captions": {"terse": "only this"}}'
    (folder / "captions.jsonl").write_text("\n".join(lines))
    encode(folder, tmp_path / "store")
    store = LatentStore(tmp_path / "store")
    assert store.captions(1) == {"terse": "only this"}
    with pytest.raises(IndexError, match=r"sample 1 \(images/001\.png\) lacks the caption variant"):
        store.read(torch.tensor([0, 1]), torch.tensor([0, 0]))
    states = store.read(torch.tensor([1])).encoded_text["clip_l.pooled"][0]
    assert torch.equal(states, HashedText().state("only this", "clip_l.pooled").half())


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match="there is no latent store in .*; rectiflow encode makes one"
    ):
        LatentStore(tmp_path / "none")


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["latents", "text"])
def test_flipped_byte_is_found_before_use(copied: Path, kind: str, in_memory: bool) -> None:
    path = copied / f"{kind}-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    store = LatentStore(copied, max_bytes_in_memory=2**30 if in_memory else 0)
    with pytest.raises(StoreError, match=rf"{kind}-00001\.safetensors is damaged: its SHA-256"):
        store.read(torch.arange(24))


def test_truncated_and_missing_shards_are_found_at_once(copied: Path) -> None:
    path = copied / "text-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"text-00001\.safetensors is damaged: it has .* bytes"):
        LatentStore(copied)
    path.unlink()
    with pytest.raises(StoreError, match=r"text-00001\.safetensors is missing; run the encoding"):
        LatentStore(copied)


def test_changed_or_missing_index(copied: Path) -> None:
    path = copied / "index.parquet"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StoreError, match=r"index\.parquet is missing, or is not the one"):
        LatentStore(copied)
    path.unlink()
    with pytest.raises(StoreError, match="run the encoding again, it completes the store"):
        LatentStore(copied)


def test_damaged_headers(copied: Path) -> None:
    path = copied / "store.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"extra": 1}))
    with pytest.raises(ConfigError, match=r'store\.json: unknown key "extra"'):
        LatentStore(copied)
    path.write_text(json.dumps(header | {"format": 2}))
    with pytest.raises(StoreError, match="has format 2, this version reads format 1; encode the"):
        LatentStore(copied)
    path.write_text("[]")
    with pytest.raises(StoreError, match="has format None"):
        LatentStore(copied)
    path.write_text(path.read_text() + "{")
    with pytest.raises(UserError, match=r"store\.json is not valid JSON"):
        LatentStore(copied)


def _changed(data: Any, place: str, value: Any) -> None:
    *steps, last = (int(step) if step.isdigit() else step for step in place.split("/"))
    for step in steps:
        data = data[step]
    data[last] = value


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        ("variants", [], r"has \[\] as caption variants"),
        ("variants", ["full", "full"], "as caption variants, not one of each"),
        ("latent_shards/0/file", "../store/latents-00000.safetensors", "lists '../store/latents"),
        ("latent_shards/0/file", "/etc/passwd", "lists '/etc/passwd', no shard of latents"),
        ("latent_shards/0/file", "text-00000.safetensors", "no shard of latents"),
        ("latent_shards/1/file", "latents-00000.safetensors", "or one listed already"),
        ("latent_shards/0/bucket", 1, "is of bucket 1, which has none"),
        ("latent_shards/0/bucket", -1, "is of bucket -1, which has none"),
        ("text_shards/0/bucket", 3, "is of bucket 3, which has none"),
        ("latent_shards/0/num_rows", 0, "has 0 rows in"),
        ("latent_shards/0/num_rows", 10**30, "has 1000000000000000000000000000000 rows in"),
        ("latent_columns", {}, "is of bucket 0, which has none"),
        ("latent_columns/mean/dtype", "float17", r"has 'float17' \[16, 4, 4\] as 'mean'"),
        ("latent_columns/mean/dtype", "nn", "has 'nn'"),
        ("latent_columns/mean/shape", [16, 0, 4], "has 'float16' .* as 'mean'"),
        ("latent_columns/mean/shape", [10**9, 10**9, 10**9], "rows in .* bytes"),
        ("latent_columns/mean/shape", [16, 16], "has no latents"),
        ("text_columns/t5.context/shape", [3, 10**15], "rows in .* bytes"),
        ("empty_prompt_row", 10**6, "has the empty prompt in row 1000000 of"),
        ("empty_prompt_row", -1, "has the empty prompt in row -1 of"),
    ],
)
def test_a_header_whose_parts_do_not_go_together(
    place: str, value: Any, text: str, copied: Path
) -> None:
    path = copied / "store.json"
    header = json.loads(path.read_text())
    _changed(header, place, value)
    path.write_text(json.dumps(header))
    with pytest.raises(StoreError, match=text) as caught:
        LatentStore(copied)
    assert str(caught.value).endswith("; encode the pictures again into a new folder")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (
            "latent_columns/mean/dtype",
            "bfloat16",
            r"says torch.bfloat16 .* of its mean, it has tor",
        ),
        ("text_columns/other", {"dtype": "int8", "shape": [1]}, "of its other, it has none"),
    ],
)
def test_columns_that_are_not_the_headers(
    place: str, value: Any, text: str, in_memory: bool, copied: Path
) -> None:
    path = copied / "store.json"
    header = json.loads(path.read_text())
    _changed(header, place, value)
    if place.startswith("latent_columns"):
        header["latent_columns"]["logvar"]["dtype"] = value
    path.write_text(json.dumps(header))
    store = LatentStore(copied, max_bytes_in_memory=2**30 if in_memory else 0)
    with pytest.raises(StoreError, match=text):
        store.read(torch.arange(24))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.slice(1), "it has 23 samples, store.json says 24"),
        (lambda t: _with(t, "latent_row", [10**6] * 24), "its latent_row goes from 1000000 to"),
        (lambda t: _with(t, "latent_row", [-1] * 24), "its latent_row goes from -1 to -1"),
        (lambda t: _with(t, "text_row.full", [99] * 24), "its text_row.full goes from 99 to 99"),
        (lambda t: _with(t, "latent_row", ["x"] * 24), "does not go together with store.json"),
        (lambda t: t.drop_columns(["file"]), "does not go together with store.json"),
    ],
)
def test_an_index_that_does_not_fit(change: Any, text: str, copied: Path) -> None:
    index = copied / "index.parquet"
    pq.write_table(change(pq.read_table(index)), index)
    header = json.loads((copied / "store.json").read_text())
    header["index_sha256"] = sha256_file(index)
    (copied / "store.json").write_text(json.dumps(header))
    with pytest.raises(StoreError, match=text) as caught:
        LatentStore(copied)
    assert "\n" not in str(caught.value)


def test_an_index_that_is_no_parquet(copied: Path) -> None:
    (copied / "index.parquet").write_bytes(b"PAR1, or not")
    header = json.loads((copied / "store.json").read_text())
    header["index_sha256"] = sha256_file(copied / "index.parquet")
    (copied / "store.json").write_text(json.dumps(header))
    with pytest.raises(StoreError, match="does not go together with store.json"):
        LatentStore(copied)


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_header_names_the_encoder_that_differs(made: Path) -> None:
    header = LatentStore(made).header
    header.check_made_by(autoencoder=header.autoencoder, text=header.text)
    header.check_made_by()
    with pytest.raises(
        StoreError, match=r"another autoencoder \(fingerprint .{12}…\) than the one"
    ):
        header.check_made_by(autoencoder="x" * 64)
    with pytest.raises(
        StoreError, match=r"text encoder t5 \(fingerprint .{12}…\) .* hand \(none\)"
    ):
        header.check_made_by(text={k: v for k, v in header.text.items() if k != "t5"})


def test_reading_needs_no_encoder_library(made: Path, run_python: object) -> None:
    script = (
        "import sys; from rectiflow.data.loader import Loader; "
        "from rectiflow.data.latent_store import LatentStore; "
        f"Loader(LatentStore({str(made)!r}), batch_size=4, seed=0).batch_at(0); "
        "print(sorted({'transformers', 'PIL', 'diffusers'} & set(sys.modules)))"
    )
    done = run_python(script)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
