import pytest
import torch

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.models.backbones import build_backbone
from rectiflow.recipes.registry import RECIPES, recipe
from rectiflow.training.recipe import TrainRecipe


@pytest.mark.parametrize(
    "name",
    [
        *RECIPES, "mmdit-d1", "mmdit-d24", "mmdit3-d3", "dit-d3", "crossdit-d3", "uvit-d3",
        "sd3-d2", "highres-tiny",
    ],
)  # fmt: skip
def test_every_recipe_builds_its_model_and_survives_json(name: str) -> None:
    found = recipe(name)
    assert found.name == name
    assert from_json(TrainRecipe, to_json(found)) == found
    with torch.device("meta"):
        backbone = build_backbone(found.backbone)
    assert len(backbone.blocks) == found.backbone.depth


@pytest.mark.parametrize("name", ["", "Demo", "mmdit", "mmdit-d0", "mmdit-d2x", "vit-d3"])
def test_an_unknown_recipe_lists_the_names(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown recipe .*; choose one of demo, tiny, tiny-mmdit, mmdit-dN"
    ):
        recipe(name)


def test_fine_tuning_at_a_high_resolution_needs_a_model() -> None:
    with pytest.raises(UserError, match="there is no model 'elsewhere'"):
        recipe("highres-elsewhere")
