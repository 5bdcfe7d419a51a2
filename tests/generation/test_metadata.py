"""What a picture says about itself: complete, the same each time, and the root of its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from generation.tiny_edits import mask, source
from tiny_model import tiny_model

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import UserError
from rectiflow.generation.editing import Edit
from rectiflow.generation.load_settings import LoadedLora
from rectiflow.generation.metadata import (
    PictureMetadata,
    count_up,
    describe_truncations,
    drawing_environment,
    picture_metadata,
)
from rectiflow.generation.model import Model
from rectiflow.generation.variations import Variation
from rectiflow.sampling import parse_guidance


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


def test_round_trip_and_the_same_each_time(model: Model) -> None:
    about = picture_metadata(model, "a ring", 3, model.settings, negative_prompt="a circle")
    assert from_json(PictureMetadata, to_json(about)) == about
    assert about == picture_metadata(model, "a ring", 3, model.settings, negative_prompt="a circle")
    plain = to_json(picture_metadata(model, "a ring", 3, model.settings))
    later = {"negative_prompt", "weaker", "cut", "num_evaluations", "edit", "variation", "loras"}
    assert not later & set(plain)


def test_the_environment_is_this_process() -> None:
    environment = drawing_environment(torch.device("cpu"), torch.float32)
    assert environment.torch == torch.__version__
    assert (environment.device, environment.threads) == ("cpu", torch.get_num_threads())
    assert environment.precision == "float32"


def test_the_name_follows_from_all_that_was_asked_for(model: Model) -> None:
    about = picture_metadata(model, "A ring!", 3, model.settings)
    named = picture_metadata(model, "A ring!", 3, model.settings, negative_prompt="a circle")
    auto = replace(model.settings, guidance=parse_guidance("auto:weaker=test"))
    beside, other = (replace(model, weaker=replace(model, digest=n * 64)) for n in "01")
    weaker = [picture_metadata(one, "A ring!", 3, auto) for one in (beside, other)]
    # As it always was where there is no negative prompt: lists rely on it to go on.
    assert about.file_name == "a-ring-aacae3b6-seed3.png"
    assert len({each.file_name for each in (about, named, *weaker)}) == 4
    # A model beside it that its guidance does not look at is no part of it.
    assert picture_metadata(other, "A ring!", 3, model.settings) == about
    edit, style = Edit(source=source()), LoadedLora(name="a", sha256="0" * 64, weight=1.0)
    masked, variation = replace(edit, mask=mask()), Variation(seed=5)
    ways = {
        "edit": [edit.reference, replace(edit, strength=0.5).reference, masked.reference,
                 replace(masked, keep_source=False).reference],
        "variation": [variation, Variation(seed=6), Variation(seed=5, amount=0.5)],
        "loras": [(style,), (replace(style, weight=0.5),), (style, style)],
        "quantization": ["int8"],
        "is_compiled": [True],
    }  # fmt: skip
    others = [replace(about, **{name: way}) for name, of_name in ways.items() for way in of_name]
    assert len({each.file_name for each in (about, *others)}) == 1 + len(others)
    assert others[4].file_name.endswith("-seed3-variation5.png")
    for each in others:
        assert from_json(PictureMetadata, to_json(each)) == each
    # What files are called is told only.
    called = replace(masked, source_name="a.png", mask_name="b.png").reference
    assert replace(about, edit=called).file_name == others[2].file_name
    renamed = replace(about, loras=(replace(style, name="b"),))
    assert renamed.file_name == replace(about, loras=(style,)).file_name
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
    lines = describe_truncations(about.cut or {})
    assert len(lines) == 3
    assert lines[0].startswith("the negative prompt is too long for clip_l, which does not see: ")
    with pytest.raises(UserError, match="not valid Unicode"):
        picture_metadata(model, "a \udcff", 0, model.settings)


def test_seeds_count_up_or_those_of_variations(model: Model) -> None:
    first = picture_metadata(model, "a ring", 3, model.settings)
    assert [each.seed for each in count_up(first, 3)] == [3, 4, 5]
    varied = count_up(replace(first, variation=Variation(seed=7, amount=0.1)), 2)
    assert [each.seed for each in varied] == [3, 3]
    assert [each.variation for each in varied] == [
        Variation(seed=7, amount=0.1),
        Variation(seed=8, amount=0.1),
    ]
