"""The loader's laws: epochs are permutations, batches pure in (seed, step) for any world size."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data.parts import encode, make_folder

from rectiflow.base.errors import ConfigError, StoreError
from rectiflow.data.latent_store import EMPTY_PROMPT, LatentStore
from rectiflow.data.loader import Loader, Prefetcher
from rectiflow.data.records import Batch

NUM = 13


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    path = tmp_path_factory.mktemp("loader")
    encode(make_folder(path / "folder", NUM), path / "store")
    return LatentStore(path / "store")


def assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.x0_mean, other.x0_mean)
    assert torch.equal(one.x0_logvar, other.x0_logvar)
    for name, column in one.encoded_text.items():
        assert torch.equal(column, other.encoded_text[name])


def indices(loader: Loader, steps: range) -> list[int]:
    return torch.cat([loader.batch_at(step).indices for step in steps]).tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 13, 30])
def test_each_epoch_shows_each_sample_once(store: LatentStore, batch_size: int) -> None:
    loader = Loader(store, batch_size=batch_size, seed=3)
    seen = indices(loader, range(8 * NUM // batch_size))
    for epoch in range(len(seen) // NUM):
        assert sorted(seen[epoch * NUM : (epoch + 1) * NUM]) == list(range(NUM))
    assert seen[:NUM] != seen[NUM : 2 * NUM]
    assert len(loader.batch_at(1000)) == batch_size


def test_batches_are_a_pure_function_of_the_step(store: LatentStore) -> None:
    loader = Loader(store, batch_size=4, seed=3)
    first = [loader.batch_at(step) for step in range(6)]
    again = Loader(LatentStore(store.path), batch_size=4, seed=3)
    for step in (5, 0, 3, 3):
        assert_equal(again.batch_at(step), first[step])
    other = Loader(store, batch_size=4, seed=4)
    assert indices(other, range(3)) != indices(loader, range(3))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_any_world_size_sees_the_same_batch(store: LatentStore, world_size: int) -> None:
    loader = Loader(store, batch_size=6, seed=3)
    parts = [loader.shard(rank, world_size) for rank in range(world_size)]
    for step in range(7):
        whole, read = loader.batch_at(step), [part.batch_at(step) for part in parts]
        joined = Batch(
            x0_mean=torch.cat([b.x0_mean for b in read]),
            x0_logvar=torch.cat([b.x0_logvar for b in read]),
            encoded_text={
                name: torch.cat([b.encoded_text[name] for b in read]) for name in whole.encoded_text
            },
            indices=torch.cat([b.indices for b in read]),
            keys=torch.cat([b.keys for b in read]),
            positions=torch.cat([b.positions for b in read]),
        )
        assert_equal(joined, whole)


def test_keys_differ_by_sample_epoch_and_seed(store: LatentStore) -> None:
    keys = torch.cat([Loader(store, batch_size=NUM, seed=s).batch_at(e).keys
                      for s in (0, 1) for e in range(5)])  # fmt: skip
    assert len(keys.unique()) == 2 * 5 * NUM


def test_keys_and_captions_do_not_depend_on_the_batch(store: LatentStore) -> None:
    """A sample of an epoch has its key and caption in batches of any size."""
    by_size: list[dict[int, tuple[int, list[float]]]] = []
    for batch_size in (1, 5, NUM):
        loader = Loader(store, batch_size=batch_size, seed=3)
        found: dict[int, tuple[int, list[float]]] = {}
        for step in range(-(-NUM // batch_size)):
            batch = loader.batch_at(step)
            for i, sample in enumerate(batch.indices.tolist()):
                value = (int(batch.keys[i]), batch.encoded_text["clip_l.pooled"][i].tolist())
                found.setdefault(sample, value)
        by_size.append(found)
    assert by_size[0] == by_size[1] == by_size[2]


def test_caption_mix_chooses_the_variant(store: LatentStore) -> None:
    only_full = Loader(store, batch_size=NUM, seed=3, caption_mix={"full": 1.0}).batch_at(0)
    expected = store.read(only_full.indices, torch.zeros(NUM, dtype=torch.int64))
    assert torch.equal(only_full.encoded_text["t5.context"], expected.encoded_text["t5.context"])
    mixed = Loader(store, batch_size=20 * NUM, seed=3, caption_mix={"full": 0.5, "terse": 0.5})
    batch = mixed.batch_at(0)
    full = store.read(batch.indices, torch.zeros(20 * NUM, dtype=torch.int64))
    is_full = (batch.encoded_text["t5.context"] == full.encoded_text["t5.context"]).all(2).all(1)
    assert 0.35 < is_full.float().mean() < 0.65


def test_empty_prompt_takes_its_share_and_leaves_the_rest(store: LatentStore) -> None:
    plain = Loader(store, batch_size=50 * NUM, seed=3).batch_at(0)
    mixed = Loader(store, batch_size=50 * NUM, seed=3, empty_prompt=0.25).batch_at(0)
    null = store.read(torch.tensor([0]), torch.tensor([EMPTY_PROMPT])).encoded_text["t5.context"]
    states = mixed.encoded_text["t5.context"]
    is_null = (states == null).all(2).all(1)
    assert 0.2 < is_null.float().mean() < 0.3
    assert torch.equal(states[~is_null], plain.encoded_text["t5.context"][~is_null])
    with pytest.raises(ConfigError, match=r"empty_prompt is 1\.5; give a probability from 0 to 1"):
        Loader(store, batch_size=1, seed=3, empty_prompt=1.5)


def test_part_of_a_store(store: LatentStore) -> None:
    rows = torch.tensor([2, 5, 11])
    loader = Loader(store, batch_size=3, seed=3, rows=rows)
    assert sorted(loader.batch_at(0).indices.tolist()) == [2, 5, 11]
    whole = Loader(store, batch_size=NUM, seed=3).batch_at(0)
    keys = dict(zip(whole.indices.tolist(), whole.keys.tolist()))
    part = loader.batch_at(0)
    assert [keys[i] for i in part.indices.tolist()] == part.keys.tolist()


def test_in_order_is_the_same_each_time(store: LatentStore) -> None:
    loader = Loader(store, batch_size=5, seed=3)
    batches = list(loader.in_order())
    assert [b.indices.tolist() for b in batches] == [
        list(range(5)), list(range(5, 10)), list(range(10, 13)),
    ]  # fmt: skip
    for one, other in zip(batches, loader.in_order(), strict=True):
        assert_equal(one, other)


class Watched:
    """A source that notes what is read and by whom, and waits for `go_on` before one of them."""

    def __init__(self, source: Loader, *, wait_before: int | None = None) -> None:
        self.source, self.wait_before = source, wait_before
        self.is_waiting, self.go_on = threading.Event(), threading.Event()
        self.read: list[int] = []
        self.threads: set[threading.Thread] = set()

    def batch_at(self, step: int) -> Batch:
        if step == self.wait_before:
            self.is_waiting.set()
            assert self.go_on.wait(timeout=10.0)
        self.read.append(step)
        self.threads.add(threading.current_thread())
        return self.source.batch_at(step)


def test_prefetching_changes_nothing(store: LatentStore) -> None:
    loader = Loader(store, batch_size=4, seed=3)
    source = Watched(Loader(store, batch_size=4, seed=3))
    prefetcher = Prefetcher(source)
    steps = (0, 1, 2, 7, 8, 3, 3, 4)
    # What is foretold may be right, wrong, or left out.
    for step, then in zip(steps, (1, 2, 3, 8, None, 3, 5, None), strict=True):
        assert_equal(prefetcher.batch_at(step, then=then), loader.batch_at(step))
    prefetcher.close()
    # One of the prefetcher's own, for what was foretold, and the caller's.
    assert len(source.threads) == 2
    assert threading.main_thread() in source.threads


def test_the_next_batch_is_read_while_the_caller_has_this_one(store: LatentStore) -> None:
    source = Watched(Loader(store, batch_size=4, seed=3), wait_before=1)
    prefetcher = Prefetcher(source)
    prefetcher.batch_at(0, then=1)
    assert source.is_waiting.wait(timeout=10.0)
    assert source.read == [0]
    source.go_on.set()
    prefetcher.close()  # waits for what it is reading
    assert source.read == [0, 1]
    (reader,) = source.threads - {threading.main_thread()}
    assert not reader.is_alive()


def test_prefetching_passes_errors_on(copy_with_cut_shard: Callable[[], LatentStore]) -> None:
    prefetcher = Prefetcher(Loader(copy_with_cut_shard(), batch_size=4, seed=3))
    for _ in range(2):
        with pytest.raises(StoreError, match="is damaged"):
            prefetcher.batch_at(0, then=1)
    prefetcher.close()


def test_an_error_ahead_comes_when_its_batch_is_asked_for(store: LatentStore) -> None:
    loader = Loader(store, batch_size=4, seed=3)
    prefetcher = Prefetcher(loader)
    assert_equal(prefetcher.batch_at(2, then=-1), loader.batch_at(2))
    assert_equal(prefetcher.batch_at(5, then=-1), loader.batch_at(5))
    with pytest.raises(ValueError, match="step is -1"):
        prefetcher.batch_at(-1, then=None)
    prefetcher.close()


@pytest.fixture
def copy_with_cut_shard(store: LatentStore, tmp_path: Path) -> Callable[[], LatentStore]:
    def copy() -> LatentStore:
        for path in store.path.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        opened = LatentStore(tmp_path)
        path = tmp_path / "latents-00000.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        return opened

    return copy


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda s: Loader(s, batch_size=0, seed=0), "batch_size is 0; it must be at least 1"),
        (
            lambda s: Loader(s, batch_size=1, seed=0, rows=torch.tensor([], dtype=torch.int64)),
            "there are no samples to load; hold out fewer for validation",
        ),
        (
            lambda s: Loader(s, batch_size=4, seed=0).shard(0, 3),
            "batch_size 4 does not divide among 3",
        ),
        (lambda s: Loader(s, batch_size=4, seed=0).shard(0, 0), "does not divide among 0 ranks"),
        (
            lambda s: Loader(s, batch_size=4, seed=0).shard(2, 2),
            r"rank is 2; it must be in \[0, 2\)",
        ),
        (lambda s: Loader(s, batch_size=4, seed=0, caption_mix={"x": 1.0}), "the variant 'x'"),
    ],
)
def test_impossible_settings(
    store: LatentStore, make: Callable[[LatentStore], object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make(store)


def test_negative_step(store: LatentStore) -> None:
    with pytest.raises(ValueError, match="step is -1; steps count from 0"):
        Loader(store, batch_size=1, seed=0).batch_at(-1)
