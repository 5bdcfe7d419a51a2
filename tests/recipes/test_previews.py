"""Sample pictures in training: none where none are asked for, none of another store's latents."""

from dataclasses import replace
from pathlib import Path

import pytest
from data.parts import encode, make_folder
from tiny_model import tiny_autoencoder, tiny_backbone, tiny_conditioner

from rectiflow.base.errors import StoreError
from rectiflow.recipes.previews import model_in_training, previews
from rectiflow.recipes.small import demo
from rectiflow.sampling import CFGZeroStar, Heun, SamplingDefaults


def test_no_pictures_asked_for_loads_nothing(tmp_path: Path) -> None:
    assert previews(replace(demo(), sample_every=0), tmp_path / "no store") is None
    assert previews(replace(demo(), sample_prompts=()), tmp_path / "no store") is None


def test_they_are_drawn_as_the_finished_model_will_be() -> None:
    sampling = SamplingDefaults(num_steps=9, solver=Heun(), guidance=CFGZeroStar())
    recipe = replace(demo(), sampling=sampling)
    model = model_in_training(
        recipe,
        tiny_backbone(),
        autoencoder=tiny_autoencoder(),
        conditioner=tiny_conditioner(),
        sampling=recipe.sampling,
        world=None,
        resolution_px=64,
    )
    assert SamplingDefaults.of(model.settings) == sampling
    assert model.settings.shift == recipe.shift.alpha


def test_a_store_of_other_parts_is_refused(tmp_path: Path) -> None:
    encode(make_folder(tmp_path / "folder", 2), tmp_path / "store")
    with pytest.raises(StoreError, match="the store was encoded by another autoencoder"):
        previews(demo(), tmp_path / "store")
