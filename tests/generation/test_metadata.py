"""What a picture says about itself: complete, the same each time, and the root of its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_model

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import UserError
from rectiflow.generation.metadata import (
    PictureMetadata,
    describe_truncations,
    drawing_environment,
    picture_metadata,
)
from rectiflow.generation.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


def test_round_trip_and_the_same_each_time(model: Model) -> None:
    about = picture_metadata(model, "a ring", 3, model.settings, negative_prompt="a circle")
    assert from_json(PictureMetadata, to_json(about)) == about
    assert about == picture_metadata(model, "a ring", 3, model.settings, negative_prompt="a circle")
    plain = to_json(picture_metadata(model, "a ring", 3, model.settings))
    assert not {"negative_prompt", "weaker", "cut", "num_evaluations"} & set(plain)


def test_the_environment_is_this_process() -> None:
    environment = drawing_environment(torch.device("cpu"))
    assert environment.torch == torch.__version__
    assert (environment.device, environment.threads) == ("cpu", torch.get_num_threads())
    assert environment.precision in ("float32", "bfloat16")


def test_the_name_follows_from_all_that_was_asked_for(model: Model) -> None:
    about = picture_metadata(model, "A ring!", 3, model.settings)
    named = picture_metadata(model, "A ring!", 3, model.settings, negative_prompt="a circle")
    weaker = picture_metadata(replace(model, weaker=model), "A ring!", 3, model.settings)
    # As it always was where there is no negative prompt: lists rely on it to go on.
    assert about.file_name == "a-ring-aacae3b6-seed3.png"
    assert len({each.file_name for each in (about, named, weaker)}) == 3
    # What is only told, not asked for, is no part of it.
    told = replace(about, environment=None, num_evaluations=9, cut={"prompt": {"t5": "x"}})
    assert told.file_name == about.file_name


def test_cut_words_are_recorded_for_both_prompts(model: Model) -> None:
    long = "a red circle and " * 40
    about = picture_metadata(model, "a ring", 0, model.settings, negative_prompt=long)
    assert about.cut is not None
    assert set(about.cut) == {"negative_prompt"}
    assert set(about.cut["negative_prompt"]) == {"clip_l", "clip_g", "t5"}
    for lost in about.cut["negative_prompt"].values():
        assert long.endswith(lost)
    lines = describe_truncations(about)
    assert len(lines) == 3
    assert lines[0].startswith("the negative prompt is too long for clip_l, which does not see: ")
    with pytest.raises(UserError, match="not valid Unicode"):
        picture_metadata(model, "a \udcff", 0, model.settings)
