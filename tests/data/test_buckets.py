"""Buckets have nearly one area, fit their ratios, and every picture goes to the nearest."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from data.parts import HashedText, encode, picture_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.base.errors import StoreError, UserError
from rectiflow.data.buckets import Bucket, buckets_for, nearest_bucket
from rectiflow.data.curation import Curation
from rectiflow.data.latent_store import LatentStore
from rectiflow.data.loader import Loader
from rectiflow.data.pixels import centered_crop
from rectiflow.data.records import CuratedSample, RawSample, Rejection

RATIOS = ("1:1", "2:1", "1:2")
BUCKETS = buckets_for(RATIOS, resolution_px=32, multiple_px=8)
TALL, SQUARE, WIDE = BUCKETS
# Height and width of pictures: three of each bucket, none exactly of its shape but the squares.
SIZES = [(32, 32), (40, 80), (90, 40), (41, 40), (30, 90), (64, 30), (50, 64), (60, 120), (99, 50)]
SHAPES = {0: (16, 6, 3), 1: (16, 4, 4), 2: (16, 3, 6)}


def picture(index: int) -> bytes:
    return picture_bytes(
        np.random.default_rng(index).integers(0, 256, (*SIZES[index % 9], 3), dtype=np.uint8)
    )


def make_folder(folder: Path, num: int = len(SIZES)) -> Path:
    folder.mkdir()
    for index in range(num):
        (folder / f"{index:02d}.png").write_bytes(picture(index))
        (folder / f"{index:02d}.txt").write_text(f"caption {index}")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("buckets")
    # Small batches and shards, so that buckets alternate in the order of rows.
    folder, small = make_folder(path / "folder"), {"batch_size": 2, "max_shard_bytes": 2300}
    report = encode(folder, path / "store", buckets=BUCKETS, **small)
    assert dict(report.num_by_bucket) == {TALL: 3, SQUARE: 3, WIDE: 3}
    assert "24×48 px: 3, 32×32 px: 3, 48×24 px: 3" in str(report)
    return path / "store"


def test_the_papers_sizes_and_ours() -> None:
    assert [str(b) for b in buckets_for(RATIOS, resolution_px=128, multiple_px=16)] == [
        "96×176", "128×128", "176×96",
    ]  # fmt: skip
    assert [str(b) for b in buckets_for(["16:9"], resolution_px=1024, multiple_px=64)] == [
        "1344×768"
    ]


@given(st.integers(1, 21), st.integers(1, 9), st.integers(4, 64), st.sampled_from([8, 16, 64]))
@settings(max_examples=60, deadline=None)
def test_a_bucket_has_whole_tokens_the_area_and_nearly_the_ratio(
    width: int, height: int, side: int, multiple: int
) -> None:
    try:
        (bucket,) = buckets_for(
            [f"{width}:{height}"], resolution_px=side * multiple, multiple_px=multiple
        )
    except UserError as error:
        assert "of the area of" in str(error)  # noqa: PT017
        return
    assert bucket.height_px % multiple == bucket.width_px % multiple == 0
    assert abs(bucket.height_px * bucket.width_px / (side * multiple) ** 2 - 1) <= 0.25
    exact = side * math.sqrt(width / height)
    assert abs(bucket.width_px / multiple - exact) <= 0.5 or bucket.width_px == multiple


@given(st.integers(1, 500), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_the_nearest_bucket_cuts_least_away_and_the_crop_lies_in_the_middle(
    height: int, width: int
) -> None:
    bucket = nearest_bucket(BUCKETS, height, width)
    ratios = {each: (width / height) / (each.width_px / each.height_px) for each in BUCKETS}
    kept = {each: min(ratio, 1 / ratio) for each, ratio in ratios.items()}
    assert kept[bucket] == pytest.approx(max(kept.values()))
    shape = bucket.height_px, bucket.width_px
    top, left, rows, columns = centered_crop(height, width, shape=shape)
    assert rows == height or columns == width
    assert 0 <= height - rows - 2 * top <= 1
    assert 0 <= width - columns - 2 * left <= 1
    share = columns * bucket.height_px - rows * bucket.width_px
    assert abs(share) <= max(bucket.height_px, bucket.width_px) or 1 in (rows, columns)


@pytest.mark.parametrize(
    ("ratios", "settings", "text"),
    [
        ([], {}, "there are no buckets; give ratios such as 1:1,2:1,1:2"),
        (["2x1"], {}, "'2x1' is no aspect ratio; give width:height in whole numbers of at most"),
        (["0:1"], {}, "'0:1' is no aspect ratio"),
        (["100000:1"], {}, "'100000:1' is no aspect ratio; .* of at most five digits, such as"),
        (["1:" + 400 * "9"], {}, "'1:999999999999999.* is no aspect ratio"),
        ([5000 * "9" + ":1"], {}, "'999999999999999.* is no aspect ratio"),
        (["1:1"], {"resolution_px": 40}, "resolution_px is 40; .* must be a multiple of 16"),
        (["1:1"], {"resolution_px": 0}, "resolution_px is 0; .* must be a multiple of 16"),
        (["2:1", "4:2"], {}, "the buckets '2:1' and '4:2' are both 96×48 px at a resolution of 64"),
        (["30:1"], {}, "bucket '30:1' would be 352×16 px, 1.38 of the area of 64×64; .* nearer"),
    ],
)
def test_impossible_buckets(ratios: list[str], settings: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        buckets_for(ratios, **({"resolution_px": 64, "multiple_px": 16} | settings))


def test_curation_crops_to_the_bucket_and_enlarges_only_on_request() -> None:
    def curate(**options: object) -> CuratedSample | Rejection:
        sample = RawSample(file="a", image_bytes=picture_bytes(pixels), captions={"a": "b"})
        return Curation(resolution_px=32, buckets=BUCKETS, **options).apply(sample)

    pixels = np.zeros((40, 90, 3), np.uint8)
    found = curate()
    assert isinstance(found, CuratedSample)
    assert found.pixels.shape == (24, 48, 3)
    assert found.crop_px == (0, 5, 40, 80)
    pixels = np.zeros((30, 31, 3), np.uint8)
    found = curate()
    assert isinstance(found, Rejection)
    assert (found.stage, found.score) == ("crop", 30.0)
    assert found.reason == "31×30 px is too small; its bucket has 32×32 px"
    assert isinstance(curate(min_side_px=1), CuratedSample)


def test_a_store_of_several_shapes(made: Path) -> None:
    store = LatentStore(made)
    assert store.latent_shapes == SHAPES
    assert store.buckets.tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0]
    mapped = LatentStore(made, max_bytes_in_memory=0)
    assert len(store.header.latent_shards) > 3
    for bucket, shape in SHAPES.items():
        indices = (store.buckets == bucket).nonzero().squeeze(1)
        rows = store.read(indices)
        assert rows.x0_mean.shape == (3, *shape)
        assert torch.equal(rows.x0_mean, mapped.read(indices).x0_mean)
    with pytest.raises(ValueError, match="do not make one batch; read a bucket at a time"):
        store.read(torch.tensor([0, 1]))


def test_rows_are_the_same_in_any_history(made: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    encode(folder, tmp_path / "store", buckets=BUCKETS, batch_size=2)
    text = HashedText()
    grown = make_folder(tmp_path / "grown")
    encode(grown, tmp_path / "store", buckets=BUCKETS, conditioner=text, batch_size=2)
    assert len(text.encoded) == 5
    one, other = LatentStore(made), LatentStore(tmp_path / "store")
    for index in range(len(SIZES)):
        rows = [store.read(torch.tensor([index])) for store in (one, other)]
        assert torch.equal(rows[0].x0_mean, rows[1].x0_mean)
        assert torch.equal(rows[0].x0_logvar, rows[1].x0_logvar)


def test_pictures_are_rejected_alike_in_a_store_that_is_continued(tmp_path: Path) -> None:
    """26×30 px is large enough for the narrow bucket, but its own is the square."""
    folder = make_folder(tmp_path / "folder", 3)
    (folder / "small.png").write_bytes(picture_bytes(np.zeros((30, 26, 3), np.uint8)))
    (folder / "small.txt").write_text("small")
    lenient = encode(folder, tmp_path / "continued", buckets=BUCKETS, min_side_px=8)
    assert lenient.num_rejected == 0
    for store in ("continued", "fresh"):
        report = encode(folder, tmp_path / store, buckets=BUCKETS)
        assert report.rejected_by_stage == {"crop": 1}
    left = [(tmp_path / s / "quarantine.jsonl").read_bytes() for s in ("continued", "fresh")]
    assert left[0] == left[1]


def test_a_store_is_continued_with_its_own_buckets_alone(made: Path, tmp_path: Path) -> None:
    folder = made.parent / "folder"
    with pytest.raises(StoreError, match="encoded with another buckets"):
        encode(folder, made)
    with pytest.raises(StoreError, match="encoded with another buckets"):
        encode(folder, made, buckets=BUCKETS[:2])
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "store.json").unlink()
    with pytest.raises(StoreError, match="encoded with another buckets"):
        encode(folder, tmp_path)


def test_buckets_must_suit_the_autoencoder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 1)
    odd = Bucket(height_px=20, width_px=48)
    with pytest.raises(UserError, match="bucket 48×20 px has sides that are no multiples of 8"):
        encode(folder, tmp_path / "store", buckets=[odd])
    with pytest.raises(UserError, match="bucket 32×32 px is given twice; give each size once"):
        encode(folder, tmp_path / "store", buckets=[SQUARE, SQUARE])


def test_a_bucket_without_pictures_is_left_empty(tmp_path: Path) -> None:
    encode(make_folder(tmp_path / "folder", 2), tmp_path / "store", buckets=BUCKETS)
    store = LatentStore(tmp_path / "store")
    assert store.latent_shapes == {1: SHAPES[1], 2: SHAPES[2]}
    assert store.read(torch.tensor([], dtype=torch.int64)).x0_mean.shape == (0, *SHAPES[1])


def test_batches_of_one_bucket_whatever_the_number_of_ranks(made: Path) -> None:
    """Also where a batch is larger than a bucket: it then spans epochs."""
    store = LatentStore(made)
    loader = Loader(store, batch_size=4, seed=3)
    shares = [loader.shard(rank, 2) for rank in range(2)]
    for step in range(18):
        batch = loader.batch_at(step)
        (bucket,) = store.buckets[batch.indices].unique().tolist()
        assert batch.x0_mean.shape == (4, *SHAPES[bucket])
        assert len(batch.keys.unique()) == 4
        parts = [share.batch_at(step) for share in shares]
        assert torch.equal(torch.cat([part.keys for part in parts]), batch.keys)
        assert torch.equal(torch.cat([part.x0_mean for part in parts]), batch.x0_mean)
    in_order = list(Loader(store, batch_size=2, seed=0).in_order())
    assert [len(batch) for batch in in_order] == [2, 1] * 3
    assert sorted(i for batch in in_order for i in batch.indices.tolist()) == list(range(9))
