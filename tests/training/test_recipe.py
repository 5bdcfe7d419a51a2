import dataclasses
import math

import pytest
from training.fake_feed import tiny_recipe

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.flow import ResolutionShift
from rectiflow.sampling import CFGZeroStar, DynamicShiftGrid, Heun, SamplingDefaults
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import CHANGEABLE, TrainRecipe, differences

DYNAMIC = SamplingDefaults(solver=Heun(), grid=DynamicShiftGrid(), guidance=CFGZeroStar())


def test_how_to_sample_survives_json_and_the_usual_is_written_as_before() -> None:
    recipe = tiny_recipe(sampling=DYNAMIC)
    assert from_json(TrainRecipe, to_json(recipe)) == recipe
    assert to_json(tiny_recipe())["sampling"] == {"num_steps": 28, "guidance_scale": 3.0}


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_recipes_survive_json(optimizer: AdamW | Muon) -> None:
    recipe = tiny_recipe(optimizer=optimizer, sample_prompts=("a red circle",))
    assert from_json(TrainRecipe, to_json(recipe)) == recipe


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"micro_batch": 0}, "micro_batch is 0; it must be at least 1"),
        ({"keep_last": 0}, "keep_last is 0; it must be at least 1"),
        ({"encoder_dropout": 1.5}, "encoder_dropout is 1.5; give a probability from 0 to 1"),
        ({"empty_prompt": -0.1}, "empty_prompt is -0.1; give a probability from 0 to 1"),
        ({"shift": ResolutionShift(alpha=2.0), "sampling": DYNAMIC}, "shift=2 does not go with"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0; give a finite norm above 0"),
        ({"gradient_clip": math.nan}, "gradient_clip is nan; give a finite norm above 0"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 to 9223372036854775807"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny_recipe(**changes)


def test_differences_name_the_dotted_path_and_both_values() -> None:
    recipe = tiny_recipe()
    other = dataclasses.replace(
        recipe, backbone=dataclasses.replace(recipe.backbone, depth=2), optimizer=AdamW()
    )
    assert differences(recipe, other) == [
        "backbone.depth is 1 in the run and 2 in the recipe",
        "optimizer.kind is 'Muon' in the run and 'AdamW' in the recipe",
    ]


def test_changeable_settings_do_not_count_as_differences() -> None:
    recipe = tiny_recipe()
    other = dataclasses.replace(recipe, max_steps=99, log_every=1, micro_batch=2)
    assert differences(recipe, other) == []
    assert set(CHANGEABLE) <= {field.name for field in dataclasses.fields(TrainRecipe)}
