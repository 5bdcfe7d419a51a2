"""Reading a store: in memory and memory-mapped alike, and never a damaged or foreign one."""

import json
from pathlib import Path

import pytest
import torch
from data.parts import HashedText, encode, make_folder, tiny_autoencoder

from rectiflow.base.errors import ConfigError, StoreError, UserError
from rectiflow.data.latent_store import LatentStore


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
