"""The recipe of the text part at a size that takes seconds: all of it runs, none is learned."""

import pytest
import torch

from rectiflow.base.errors import UserError
from rectiflow.models.shipped import verify
from rectiflow.models.text.loading import load_text_folder
from rectiflow.models.vision.image_tower import load_image_tower_folder
from rectiflow.recipes.parts import text_scores
from rectiflow.recipes.parts.text import TextPartRecipe, make_text_part
from rectiflow.training.parts.contrastive import ContrastiveTraining
from rectiflow.training.parts.span_corruption import SpanTraining

RECIPE = TextPartRecipe(
    num_scenes=96,
    num_val_scenes=48,
    num_layers=2,
    clip_l=(16, 1),
    clip_g=(16, 1),
    image_tower=(16, 1),
    image_patch_px=16,
    t5=(32, 1),
    t5_feed_forward=32,
    contrastive=ContrastiveTraining(max_steps=2, batch_size=8),
    spans=SpanTraining(max_steps=2, batch_size=8),
)


@pytest.fixture
def part(tmp_path, monkeypatch):
    monkeypatch.setattr(text_scores, "RETRIEVAL_BATCH", 16)
    monkeypatch.setattr(text_scores, "NUM_PROBE_TRAIN", 100)
    monkeypatch.setattr(text_scores, "NUM_PROBE_STEPS", 2)
    monkeypatch.setattr(text_scores, "NUM_HELD_OUT_PER_TASK", 2)
    make_text_part(RECIPE, tmp_path / "part", lambda fields: None)
    return tmp_path / "part"


def test_the_recipe_makes_a_part_that_loads_and_says_where_it_comes_from(part):
    card = verify(part)
    assert card.recipe["contrastive"]["max_steps"] == 2
    assert card.data["held_out"] is False
    assert set(card.scores["last_losses"]) == {"loss_clip_l", "loss_clip_g", "loss_t5"}
    for name in ("probe_clip", "probe_clip_pooled", "probe_t5"):
        kinds = {"count", "relation", "place", "shape", "color", "letter"}
        assert set(card.scores[name]["seen"]) == set(card.scores[name]["held_out"]) == kinds
    assert 0 <= card.scores["retrieval_at_16"]["full"] <= 1
    conditioner = load_text_folder(part)
    assert conditioner.encode(["a red circle"]).t5.shape == (1, 16, 32)
    images = torch.zeros(1, 3, 64, 64)
    assert load_image_tower_folder(part / "image_tower").embed(images).shape == (1, 16)
    with pytest.raises(UserError, match="the folder is not empty; choose another or remove it"):
        make_text_part(RECIPE, part, lambda fields: None)
