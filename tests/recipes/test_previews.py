"""Sample pictures in training: none where none are asked for, none of another store's latents."""

from dataclasses import replace
from pathlib import Path

import pytest
from data.parts import encode, make_folder

from rectiflow.base.errors import StoreError
from rectiflow.recipes.previews import previews
from rectiflow.recipes.small import demo


def test_no_pictures_asked_for_loads_nothing(tmp_path: Path) -> None:
    assert previews(replace(demo(), sample_every=0), tmp_path / "no store") is None
    assert previews(replace(demo(), sample_prompts=()), tmp_path / "no store") is None


def test_a_store_of_other_parts_is_refused(tmp_path: Path) -> None:
    encode(make_folder(tmp_path / "folder", 2), tmp_path / "store")
    with pytest.raises(StoreError, match="the store was encoded by another autoencoder"):
        previews(demo(), tmp_path / "store")
