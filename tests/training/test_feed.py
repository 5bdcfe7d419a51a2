import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from data.parts import (
    RESOLUTION_PX,
    HashedText,
    encode,
    make_folder,
    picture_bytes,
    tiny_autoencoder,
)
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import ConfigError, StoreError
from rectiflow.data.buckets import buckets_for
from rectiflow.data.latent_store import LatentStore
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.training.calibration import calibrate
from rectiflow.training.feed import open_feed
from rectiflow.training.loop import train
from rectiflow.training.planner import largest_input
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.tensor_files import read_tensors

NUM = 13
BACKBONE = MMDiTConfig(depth=1, context_dim=20, pooled_dim=16, position_side=4, base_side=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feed")
    encode(make_folder(path / "folder", NUM), path / "store")
    return path / "store"


def recipe(**changes: object) -> TrainRecipe:
    return tiny_recipe(**({"backbone": BACKBONE} | changes))


def test_held_out_samples_are_never_trained_on(store: Path) -> None:
    feed = open_feed(store, recipe())
    held_out = {i for batch in feed.validation for i in batch.indices.tolist()}
    trained = {i for step in range(9) for i in feed.batch_at(step).indices.tolist()}
    assert len(held_out) == 4
    assert trained | held_out == set(range(NUM))
    assert not trained & held_out


def test_every_seed_is_judged_on_the_same_held_out_samples_and_noise(store: Path) -> None:
    first, second = (open_feed(store, recipe(seed=seed)) for seed in (0, 1))
    for a, b in zip(first.validation, second.validation, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.keys, b.keys)
    assert not torch.equal(first.batch_at(0).indices, second.batch_at(0).indices)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_processes_rows_are_the_batch(store: Path, num_processes: int) -> None:
    feed = open_feed(store, recipe())
    for step in (0, 2, 5):  # the second one spans two epochs
        whole = feed.batch_at(step)
        parts = [feed.shard(rank, num_processes).batch_at(step) for rank in range(num_processes)]
        for name in ("indices", "keys", "positions", "x0_mean"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))


def test_nothing_is_held_out_on_request(store: Path) -> None:
    assert open_feed(store, recipe(num_validation=0)).validation == ()


def test_facts_are_the_stores(store: Path) -> None:
    facts = open_feed(store, recipe()).facts
    assert facts.fingerprint == LatentStore(store).fingerprint
    assert facts.autoencoder["fingerprint"] == tiny_autoencoder().fingerprint()
    assert facts.text == HashedText().fingerprints()
    assert (facts.resolution_px, facts.latent_shapes) == (RESOLUTION_PX, ((16, 4, 4),))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"context_dim": 21}, "backbone.context_dim is 21, the store's rows have 20; set it to"),
        ({"pooled_dim": 17}, "backbone.pooled_dim is 17, the store's rows have 16; set it to 16"),
        ({"in_channels": 4}, "backbone.in_channels is 4, the store's rows have 16; set it to 16"),
        (
            {"in_channels": 33, "out_channels": 16},
            "backbone.out_channels is 16: it is for inpainting, and the store's rows have no masks",
        ),
        ({"patch_size": 3}, "latents are 4×4, not a multiple of backbone.patch_size 3; encode"),
        (
            {"position_side": 1, "base_side": 1},
            "latents are 4×4, 2 tokens on a side; raise backbone.position_side from 1",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_the_store_is_refused(
    store: Path, changes: dict[str, int], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        open_feed(store, recipe(backbone=dataclasses.replace(BACKBONE, **changes)))


def test_a_recipe_may_be_for_one_resolution(store: Path) -> None:
    open_feed(store, recipe(resolution_px=RESOLUTION_PX))
    text = "the store's resolution is 32 px, the recipe 'test' is for 64 px; encode .* --resolution"
    with pytest.raises(ConfigError, match=text):
        open_feed(store, recipe(resolution_px=64))


def test_clips_part_of_the_context_must_be_the_stores(store: Path) -> None:
    length = open_feed(store, recipe()).facts.num_clip_tokens
    open_feed(store, recipe(backbone=dataclasses.replace(BACKBONE, num_clip_tokens=length)))
    other = dataclasses.replace(BACKBONE, num_clip_tokens=length + 1)
    with pytest.raises(
        ConfigError, match=f"num_clip_tokens is {length + 1}, .*; set it to {length}"
    ):
        open_feed(store, recipe(backbone=other))


def test_a_refused_store_leaves_no_run_folder(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train(tiny_recipe(), store, tmp_path / "run", progress=False)
    with pytest.raises(StoreError, match="there is no latent store in"):
        train(recipe(), tmp_path, tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_a_store_and_its_continuation(store: Path, tmp_path: Path) -> None:
    result = train(recipe(), store, tmp_path / "run", max_steps=4, progress=False)
    assert result.step == 4
    result = train(recipe(), store, tmp_path / "run", max_steps=6, progress=False)
    assert result.step == 6
    assert result.validation is not None


def test_calibration_gives_a_plausible_rate_and_leaves_nothing() -> None:
    rate = calibrate(tiny_recipe(max_steps=2), FakeFeed(), 0.3)
    assert 1 < rate < 10_000


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of tall, square and wide pictures, four of each."""
    path = tmp_path_factory.mktemp("mixed")
    (path / "folder").mkdir()
    for index in range(12):
        size = [(32, 32), (30, 60), (60, 30)][index % 3]
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        (path / "folder" / f"{index:02d}.png").write_bytes(picture_bytes(pixels))
        (path / "folder" / f"{index:02d}.txt").write_text("a caption")
    buckets = buckets_for(["1:1", "2:1", "1:2"], resolution_px=32, multiple_px=8)
    encode(path / "folder", path / "store", buckets=buckets)
    return path / "store"


PATCHES_OF_1 = dataclasses.replace(BACKBONE, patch_size=1, position_side=6)


def test_a_run_on_buckets_resumes_bit_for_bit(mixed: Path, tmp_path: Path) -> None:
    # A rate that falls towards the end would know where that is.
    steps = recipe(
        backbone=PATCHES_OF_1,
        max_steps=5,
        num_validation=3,
        validate_every=0,
        schedule=Trapezoid(warmup_steps=2, decay_fraction=0.0),
    )
    feed = open_feed(mixed, steps)
    assert feed.facts.latent_shapes == ((16, 6, 3), (16, 4, 4), (16, 3, 6))
    assert len({feed.batch_at(step).x0_mean.shape for step in range(8)}) == 3
    assert sum(map(len, feed.validation)) == 3
    train(steps, mixed, tmp_path / "whole", progress=False)
    train(steps, mixed, tmp_path / "cut", max_steps=2, progress=False)
    train(steps, mixed, tmp_path / "cut", max_steps=5, progress=False)
    one, other = (
        read_tensors(tmp_path / run / "checkpoints" / "step_00000005" / "weights.safetensors")
        for run in ("whole", "cut")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_bucket_must_fit_the_backbone(mixed: Path) -> None:
    text = "the store's latents are 6×3, not a multiple of backbone.patch_size 2"
    with pytest.raises(ConfigError, match=text):
        open_feed(mixed, recipe())
    small = dataclasses.replace(PATCHES_OF_1, position_side=5)
    with pytest.raises(ConfigError, match="latents are 6×3, 6 tokens on a side; raise backbone.po"):
        open_feed(mixed, recipe(backbone=small))


def test_the_planner_takes_the_largest_bucket(mixed: Path) -> None:
    size = largest_input(open_feed(mixed, recipe(backbone=PATCHES_OF_1)))
    assert (size.height * size.width, size.num_text) == (18, 5)


def test_a_run_goes_on_with_a_store_whose_damaged_shard_was_made_anew(tmp_path: Path) -> None:
    """As the program advises; what was encoded anew lies elsewhere and holds the same bits."""
    folder = make_folder(tmp_path / "folder", NUM)
    encode(folder, tmp_path / "store", max_shard_bytes=8_000)
    train(recipe(), tmp_path / "store", tmp_path / "run", max_steps=2, progress=False)
    before = open_feed(tmp_path / "store", recipe())
    rows = LatentStore(tmp_path / "store").latent_rows
    (tmp_path / "store" / "latents-00000.safetensors").unlink()
    encode(folder, tmp_path / "store", max_shard_bytes=8_000)
    after = open_feed(tmp_path / "store", recipe())
    assert not torch.equal(LatentStore(tmp_path / "store").latent_rows, rows)
    for one, other in zip(before.validation, after.validation, strict=True):
        assert torch.equal(one.x0_mean, other.x0_mean)
    assert torch.equal(before.batch_at(3).x0_mean, after.batch_at(3).x0_mean)
    result = train(recipe(), tmp_path / "store", tmp_path / "run", max_steps=4, progress=False)
    assert result.step == 4
