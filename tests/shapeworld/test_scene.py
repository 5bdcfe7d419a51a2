"""Scenes are pure, lie inside the canvas, and keep seen and held-out combinations apart."""

from itertools import combinations

import pytest

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.scene import (
    SPLITS,
    TASKS,
    Scene,
    contents,
    held_out_kinds,
    relation_between,
    sample_scene,
    words,
)
from rectiflow.shapeworld.world import SMALL, World, is_held_out_word

KIND = {
    "single_object": {"pair"},
    "two_object": {"shapes"},
    "counting": {"count"},
    "colors": {"pair"},
    "position": {"shapes"},
    "color_attr": {"pair"},
}


def draw(world: World, number: int, **options: object) -> list[Scene]:
    settings: dict[str, object] = {"split": "train", "seed": 3} | options
    return [sample_scene(world, index=index, **settings) for index in range(number)]


def kinds_of(scene: Scene) -> set[str]:
    return set(held_out_kinds(tuple((item.shape, item.color) for item in scene.items)))


def test_drawing_is_pure(world: World) -> None:
    forward = draw(world, 50)
    backward = [
        sample_scene(world, split="train", seed=3, index=index) for index in reversed(range(50))
    ]
    assert forward == backward[::-1]


def test_split_seed_and_index_matter(world: World) -> None:
    scenes = draw(world, 50)
    assert len(set(scenes)) >= 45
    for other in (draw(world, 50, split="val"), draw(world, 50, seed=4)):
        assert sum(a == b for a, b in zip(scenes, other, strict=True)) <= 3


def test_all_tasks_are_about_as_frequent(world: World) -> None:
    drawn = [scene.task for scene in draw(world, 1400)]
    for task in TASKS:
        assert 140 <= drawn.count(task) <= 260


@pytest.mark.parametrize("split", SPLITS)
def test_default_scenes_show_nothing_held_out(world: World, split: str) -> None:
    for scene in draw(world, 1500, split=split):
        assert not kinds_of(scene)
        assert scene.word is None or not is_held_out_word(scene.word.text)


@pytest.mark.parametrize("task", TASKS)
def test_held_out_scenes_show_what_the_task_is_about(world: World, task: str) -> None:
    for scene in draw(world, 200, task=task, held_out=True):
        assert scene.task == task
        if scene.word is not None:
            assert is_held_out_word(scene.word.text)
        else:
            assert kinds_of(scene) == KIND[task]


@pytest.mark.parametrize("task", [task for task in TASKS if task != "typography"])
def test_seen_and_held_out_contents_are_apart_and_cover_the_parts(world: World, task: str) -> None:
    seen, unseen = (set(contents(world, task, held_out=flag)) for flag in (False, True))
    assert seen
    assert unseen
    assert not seen & unseen
    assert {shape for content in seen for shape, _ in content} == set(world.shapes)
    assert {color for content in seen for _, color in content} == set(world.colors)
    if task == "counting":
        assert {len(content) for content in seen} == set(world.counts)


def test_words_are_either_seen_or_held_out(world: World) -> None:
    seen, unseen = (set(words(world, held_out=flag)) for flag in (False, True))
    assert seen | unseen == set(world.words)
    assert not seen & unseen


def test_objects_lie_inside_and_apart(world: World) -> None:
    for scene in draw(world, 1000):
        for item in scene.items:
            assert item.radius_px in world.radii_px
            for at in item.center_px:
                assert item.radius_px + world.margin_px <= at
                assert at <= world.canvas_px - item.radius_px - world.margin_px
                assert at % world.placement_step_px == 0
        for a, b in combinations(scene.items, 2):
            reach = max(abs(p - q) for p, q in zip(a.center_px, b.center_px, strict=True))
            assert reach >= a.radius_px + b.radius_px + world.min_gap_px


def test_words_lie_inside(world: World) -> None:
    for scene in draw(world, 500, task="typography"):
        assert scene.word is not None
        size = world.word_size_px(len(scene.word.text))
        for at, length in zip(scene.word.center_px, size, strict=True):
            assert length / 2 + world.margin_px <= at
            assert at <= world.canvas_px - length / 2 - world.margin_px


def test_small_letters_lie_on_the_grid() -> None:
    for scene in draw(SMALL, 200, task="typography"):
        assert scene.word is not None
        first = scene.word.center_px[0] - SMALL.glyph_pitch_px * (len(scene.word.text) - 1) / 2
        assert first % SMALL.placement_step_px == 0
        assert scene.word.center_px[1] % SMALL.placement_step_px == 0


def test_relations_are_all_drawn_and_never_diagonal(world: World) -> None:
    names: set[str] = set()
    for scene in draw(world, 400, task="position"):
        first, second = (item.center_px for item in scene.items)
        offsets = sorted(abs(a - b) for a, b in zip(first, second, strict=True))
        assert offsets[0] <= 0.5 * offsets[1]
        names.add(relation_between(first, second))
    assert names == {"left of", "right of", "above", "below"}


def test_unknown_split_and_task_are_refused() -> None:
    with pytest.raises(UserError, match="unknown split 'test'; choose one of train, val"):
        sample_scene(SMALL, split="test", seed=0, index=0)
    with pytest.raises(UserError, match="unknown task 'shapes'; choose one of single_object"):
        sample_scene(SMALL, split="val", seed=0, index=0, task="shapes")
