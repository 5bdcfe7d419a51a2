"""Features of patches: a column that a store has or has not, through all of its walk."""

from pathlib import Path

import pytest
import torch
from data.parts import MeanColors, encode, make_folder, random_pixels

from rectiflow.base.errors import StoreError, UserError
from rectiflow.data.buckets import Bucket
from rectiflow.data.encoded_rows import images_from_pixels
from rectiflow.data.latent_store import LatentStore
from rectiflow.data.loader import Loader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made")
    encode(make_folder(path / "folder", 6), path / "store", image_encoder=MeanColors())
    encode(path / "folder", path / "plain")
    return path


def test_rows_hold_what_the_encoder_says_of_their_pictures(made: Path) -> None:
    store = LatentStore(made / "store")
    assert store.header.features == MeanColors().fingerprint()
    batch = Loader(store, batch_size=4, seed=0).batch_at(1)
    images = images_from_pixels([random_pixels(i) for i in batch.indices.tolist()])
    assert batch.features is not None
    torch.testing.assert_close(
        batch.features, MeanColors().patch_features(images).half(), rtol=1e-3, atol=1e-3
    )
    part = batch[1:3].features
    assert part is not None
    assert torch.equal(part, batch.features[1:3])


def test_latents_are_those_of_a_store_without(made: Path) -> None:
    rows = torch.arange(6)
    plain, store = LatentStore(made / "plain"), LatentStore(made / "store")
    assert plain.read(rows).features is None
    assert torch.equal(plain.read(rows).x0_mean, store.read(rows).x0_mean)
    assert "features" not in (made / "plain" / "store.json").read_text()


@pytest.mark.parametrize(
    ("name", "encoder"), [("store", None), ("store", MeanColors(2.0)), ("plain", MeanColors())]
)
def test_a_store_is_continued_with_its_own_features_alone(
    made: Path, name: str, encoder: MeanColors | None
) -> None:
    with pytest.raises(StoreError, match="encoded with another features"):
        encode(made / "folder", made / name, image_encoder=encoder)


def test_features_are_of_squares_and_finite(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features are made of squares, and 1 buckets were asked"):
        encode(
            made / "folder",
            tmp_path / "store",
            image_encoder=MeanColors(),
            buckets=[Bucket(height_px=32, width_px=32)],
        )
    with pytest.raises(UserError, match=r"the image encoder for images/000\.png gave features"):
        encode(made / "folder", tmp_path / "store", image_encoder=MeanColors(1e9))
