"""The recipe of section 5.3.2, each change against the model that it starts from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rectiflow.base.config import from_json, save_config
from rectiflow.base.files import read_json
from rectiflow.generation.model import read_model_card
from rectiflow.models.model_folder import find_model_folder
from rectiflow.recipes import highres as highres_module
from rectiflow.recipes.highres import highres, shift_for
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.recipe import TrainRecipe


@pytest.mark.parametrize("has_qk_norm", [False, True])
def test_it_changes_what_the_paper_changes(
    has_qk_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_model_card(find_model_folder("tiny"))
    card = replace(card, backbone=replace(card.backbone, use_qk_norm=has_qk_norm))
    monkeypatch.setattr(highres_module, "read_model_card", lambda folder: card)
    recipe = highres("tiny")
    assert recipe.backbone == replace(
        card.backbone, use_qk_norm=True, base_side=8, position_side=2 * card.backbone.position_side
    )
    assert (recipe.start_from, recipe.add_qk_norm) == ("tiny", not has_qk_norm)
    assert recipe.resolution_px == 2 * card.resolution_px == 128
    assert recipe.formulation == card.formulation
    assert recipe.optimizer.eps == 1e-15
    assert recipe.sampling == SamplingDefaults.of(card.sampling)
    # Four times the tokens: sqrt(m/n) = 2.
    assert recipe.shift.alpha == 2.0 * card.sampling.shift


@pytest.mark.parametrize("model", ["tiny", "tiny-mmdit"])
def test_text_times_and_rate_stay_those_of_the_models_own_training(
    model: str, tmp_path: Path
) -> None:
    first = from_json(TrainRecipe, read_json(find_model_folder(model) / "card.json")["recipe"])
    run = tmp_path / "run"
    shutil.copytree(find_model_folder(model), run / "model")
    (run / "model" / "card.json").unlink()
    save_config(run / "recipe.json", first)
    for recipe in (highres(model), highres(str(run))):
        for name in ("encoder_dropout", "pooled_dropout", "stratified_times", "sample_prompts"):
            assert getattr(recipe, name) == getattr(first, name)
        assert recipe.optimizer.learning_rate == first.optimizer.learning_rate
    # Of a model alone nothing is known: it is trained as the paper trains.
    (run / "recipe.json").unlink()
    alone = highres(str(run))
    assert (alone.encoder_dropout, alone.pooled_dropout) == (TrainRecipe.encoder_dropout, 0.0)


def test_the_shift_grows_with_the_side() -> None:
    card = read_model_card(find_model_folder("tiny"))
    own = card.sampling.shift
    alphas = [shift_for(card, side).alpha for side in (64, 128, 192)]
    assert alphas == [own, 2.0 * own, 3.0 * own]
