import pytest
import torch

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.models.mmdit import MMDiT
from rectiflow.recipes.registry import RECIPES, recipe
from rectiflow.training.recipe import TrainRecipe


@pytest.mark.parametrize("name", [*RECIPES, "mmdit-d1", "mmdit-d8", "mmdit-d24"])
def test_every_recipe_builds_its_model_and_survives_json(name: str) -> None:
    found = recipe(name)
    assert found.name == name
    assert from_json(TrainRecipe, to_json(found)) == found
    with torch.device("meta"):
        backbone = MMDiT(found.backbone)
    assert len(backbone.blocks) == found.backbone.depth


@pytest.mark.parametrize("name", ["", "Demo", "mmdit", "mmdit-d0", "mmdit-d2x"])
def test_an_unknown_recipe_lists_the_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe .*; choose one of demo, tiny, mmdit-dN"):
        recipe(name)
