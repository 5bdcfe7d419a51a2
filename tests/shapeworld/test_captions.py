"""Captions say what the scene shows, and can be read back."""

import re

import pytest

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.captions import (
    PLACES,
    captions,
    parse_caption,
    place_of,
    prompt_metadata,
)
from rectiflow.shapeworld.reading import Detection, Reading, ReadWord
from rectiflow.shapeworld.scene import TASKS, Scene, Word, sample_scene
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import FULL, SMALL, World

BOX = (0.0, 0.0, 1.0, 1.0)


def perfect_reading(scene: Scene) -> Reading:
    """What an oracle that never errs reads in a scene's picture."""
    word = scene.word
    return Reading(
        objects=tuple(
            Detection(
                shape=item.shape,
                color=item.color,
                box=(
                    item.center_px[0] - item.radius_px,
                    item.center_px[1] - item.radius_px,
                    item.center_px[0] + item.radius_px,
                    item.center_px[1] + item.radius_px,
                ),
                center_px=item.center_px,
                score=1.0,
            )
            for item in scene.items
        ),
        word=None
        if word is None
        else ReadWord(
            text=word.text, color=word.color, box=BOX, center_px=word.center_px, score=1.0
        ),
        unknown=(),
    )


@pytest.mark.parametrize("task", TASKS)
def test_both_captions_are_strictly_true(world: World, task: str) -> None:
    for index in range(200):
        scene = sample_scene(
            world, split="val", seed=5, index=index, task=task, held_out=index % 2 == 0
        )
        texts = captions(world, scene, seed=5, index=index)
        assert set(texts) == {"terse", "full"}
        for text in texts.values():
            verdict = score(world, perfect_reading(scene), parse_caption(world, text))
            assert verdict.strict, (text, verdict.reason)
            assert verdict.graded == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_terse_captions_have_genevals_form(world: World, task: str) -> None:
    noun, color = f"({'|'.join(world.shapes)})", f"({'|'.join(world.colors)})"
    form = {
        "single_object": f"a photo of an? {noun}",
        "two_object": f"a photo of an? {noun} and an? {noun}",
        "counting": f"a photo of (two|three|four) {noun}e?s",
        "colors": f"a photo of an? {color} {noun}",
        "position": f"a photo of an? {noun} (left of|right of|above|below) an? {noun}",
        "color_attr": f"a photo of an? {color} {noun} and an? {color} {noun}",
        "typography": f'the word "[A-Z]+"( in {color})?',
    }[task]
    for index in range(100):
        scene = sample_scene(world, split="val", seed=6, index=index, task=task)
        text = captions(world, scene, seed=6, index=index)["terse"]
        assert re.fullmatch(form, text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
        metadata = parse_caption(world, text)
        assert metadata["tag"] == task
        assert metadata["prompt"] == text


def test_full_captions_name_everything_and_are_short(world: World) -> None:
    for index in range(500):
        scene = sample_scene(world, split="val", seed=7, index=index)
        text = captions(world, scene, seed=7, index=index)["full"]
        assert "photo" not in text
        for item in scene.items:
            assert f"{item.color} {item.shape}" in text
        assert len(text.split()) <= (13 if len(scene.items) <= 2 else 14)


def test_places_of_one_scene_differ(world: World) -> None:
    for index in range(1000):
        scene = sample_scene(world, split="val", seed=8, index=index)
        places = [place_of(world, item.center_px) for item in scene.items]
        assert len(set(places)) == len(places)
        assert set(places) <= set(PLACES)


def test_half_of_the_word_captions_leave_the_color_out(world: World) -> None:
    texts = []
    for index in range(400):
        scene = sample_scene(world, split="val", seed=9, index=index, task="typography")
        texts.append(captions(world, scene, seed=9, index=index)["terse"])
        assert texts[-1] == captions(world, scene, seed=9, index=index)["terse"]
    assert 140 <= sum(" in " in text for text in texts) <= 260


@pytest.mark.parametrize(
    ("caption", "clauses"),
    [
        ("a photo of three crosses", [{"class": "cross", "count": 3}]),
        (
            "a photo of an orange circle above a star",
            [
                {"class": "star", "count": 1},
                {"class": "circle", "count": 1, "color": "orange", "position": ["above", 0]},
            ],
        ),
        (
            "two red hearts top and bottom right",
            [{"class": "heart", "count": 2, "color": "red", "places": ["top", "bottom right"]}],
        ),
        (
            "a circle left left of a ring",
            [
                {"class": "ring", "count": 1},
                {"class": "circle", "count": 1, "places": ["left"], "position": ["left of", 0]},
            ],
        ),
    ],
)
def test_sentences_become_genevals_clauses(caption: str, clauses: list[dict[str, object]]) -> None:
    assert parse_caption(FULL, caption)["include"] == clauses


def test_metadata_is_that_of_the_terse_caption(world: World) -> None:
    for index in range(200):
        scene = sample_scene(world, split="val", seed=9, index=index)
        text = captions(world, scene, seed=9, index=index)["terse"]
        metadata = prompt_metadata(world, scene, with_word_color=" in " in text)
        assert metadata == parse_caption(world, text)
        assert ("exclude" in metadata) == (scene.task == "counting")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a photo of a star",
        "a photo of a pink circle",
        'the word "ZEBRA"',
        "a red circle and a blue square and a ring",
        "a photo of five rings",
    ],
)
def test_other_sentences_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="the small world has no sentence"):
        parse_caption(SMALL, text)


def test_words_have_a_place() -> None:
    word = Word(text="AX", color="red", center_px=(28.0, 16.0))
    texts = captions(SMALL, Scene(task="typography", items=(), word=word), seed=0, index=0)
    assert texts["full"] == 'the word "AX" in red top'
