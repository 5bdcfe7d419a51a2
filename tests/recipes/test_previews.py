"""Sample pictures in training: none where none are asked for, else as the finished model's."""

from dataclasses import replace

from tiny_model import tiny_autoencoder, tiny_backbone, tiny_conditioner

from rectiflow.generation.frozen_parts import shipped_parts
from rectiflow.recipes.previews import model_in_training, previews
from rectiflow.recipes.small import demo
from rectiflow.sampling import CFGZeroStar, Heun, SamplingDefaults


def test_no_pictures_where_none_are_asked_for() -> None:
    def drawn(**changes: object) -> object:
        recipe = replace(demo(), **changes)
        return previews(recipe, shipped_parts(), world=None, resolution_px=64)

    assert drawn(sample_every=0) is None
    assert drawn(sample_prompts=()) is None
    assert drawn() is not None


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
