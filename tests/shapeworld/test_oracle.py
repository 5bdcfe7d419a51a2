"""The oracle is strict about shapes, and lenient about what a lossy picture does to them."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, Item, Scene, Word, sample_scene
from rectiflow.shapeworld.world import BACKGROUND, FULL, PALETTE, SMALL

Picture = NDArray[np.uint8]


def scene_of(*items: tuple[str, str, float, float]) -> Scene:
    return Scene(
        task="two_object",
        items=tuple(
            Item(shape=shape, color=color, center_px=(x, y), radius_px=10.0)
            for shape, color, x, y in items
        ),
    )


def test_an_empty_picture_has_nothing(gallery: Any) -> None:
    reading = gallery.oracle.read(render(gallery.world, scene_of()))
    assert (reading.objects, reading.word, reading.unknown) == ((), None, ())


def test_noise_alone_has_no_object(gallery: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        image = rng.integers(0, 256, (64, 64, 3), np.uint8)
        reading = gallery.oracle.read(image)
        assert not reading.objects
        assert reading.word is None or set(reading.word.text) == {"?"}


def test_boxes_hold_the_object(gallery: Any) -> None:
    for scene in gallery.scenes("two_object", 100):
        image = render(gallery.world, scene)
        painted = (image != BACKGROUND).any(axis=2)
        for one in gallery.read(scene).objects:
            x0, y0, x1, y1 = (round(edge) for edge in one.box)
            window = painted[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2]
            rows = np.flatnonzero(window.any(axis=1))
            assert abs(len(rows) - (one.box[3] - one.box[1])) <= 2.0
            assert 0.86 <= one.score <= 1.001


def test_shapes_of_another_world_are_unknown() -> None:
    oracle = Oracle(SMALL)
    for shape in set(FULL.shapes) - set(SMALL.shapes):
        item = Item(shape=shape, color="red", center_px=(32.0, 32.0), radius_px=10.5)
        reading = oracle.read(render(FULL, Scene(task="colors", items=(item,))))
        assert not reading.objects, (shape, reading)
        assert reading.num_unknown == 1
        assert reading.unknown[0].color == "red"


def test_half_shapes_are_unknown() -> None:
    oracle = Oracle(FULL)
    for shape in FULL.shapes:
        image = render(FULL, scene_of((shape, "blue", 32.0, 32.0)))
        image[:, 32:] = BACKGROUND
        reading = oracle.read(image)
        assert shape not in [one.shape for one in reading.objects]


def test_a_shape_between_two_is_unknown() -> None:
    # The mean of a circle's and a square's outline: |x|^4 + |y|^4 <= r^4.
    y, x = np.mgrid[0:64, 0:64] - 31.5
    image = np.full((64, 64, 3), BACKGROUND, np.uint8)
    image[x**4 + y**4 <= 9.6**4] = PALETTE["green"]
    for world in (SMALL, FULL):
        assert Oracle(world).read(image).num_unknown == 1


def test_colors_off_the_palette_are_unknown() -> None:
    image = render(FULL, scene_of(("circle", "red", 32.0, 32.0)))
    image[(image != BACKGROUND).any(axis=2)] = (120, 255, 255)
    (one,) = Oracle(FULL).read(image).objects
    assert (one.shape, one.color) == ("circle", "unknown")


@pytest.mark.parametrize("colors", [("red", "blue"), ("yellow", "purple"), ("black", "white")])
def test_touching_objects_are_told_apart_by_color(colors: tuple[str, str]) -> None:
    # Squares of radius 10 reach 8.8 px from their centres.
    image = render(FULL, scene_of(("square", colors[0], 20.0, 30.0)))
    other = render(FULL, scene_of(("square", colors[1], 37.0, 34.0)))
    inked = (other != BACKGROUND).any(axis=2)
    image[inked] = other[inked]
    reading = Oracle(FULL).read(image)
    assert sorted((one.shape, one.color) for one in reading.objects) == sorted(
        ("square", color) for color in colors
    )
    assert not reading.unknown


def test_a_word_and_objects_are_read_together() -> None:
    word = Word(text="CAT", color="white", center_px=(32.0, 50.0))
    items = scene_of(("circle", "red", 14.0, 20.0), ("ring", "white", 48.0, 20.0)).items
    reading = Oracle(FULL).read(render(FULL, Scene(task="typography", items=items, word=word)))
    assert reading.word is not None
    assert (reading.word.text, reading.word.color) == ("CAT", "white")
    assert {one.shape for one in reading.objects} == {"circle", "ring"}
    assert not reading.unknown


def test_a_spoilt_letter_is_not_guessed() -> None:
    word = Word(text="HAT", color="white", center_px=(32.0, 32.0))
    image = render(FULL, Scene(task="typography", items=(), word=word))
    # The middle letter's legs and bar become a block.
    image[29:39, 27:37] = PALETTE["white"]
    reading = Oracle(FULL).read(image)
    assert reading.word is None or reading.word.text == "H?T"


def test_larger_pictures_are_read_too(gallery: Any) -> None:
    for index in range(40):
        scene = sample_scene(gallery.world, split="val", seed=9, index=index)
        reading = gallery.oracle.read(render(gallery.world, scene, scale=2))
        assert sorted((one.shape, one.color) for one in reading.objects) == sorted(
            (item.shape, item.color) for item in scene.items
        )
        assert (reading.word and reading.word.text) == (scene.word and scene.word.text)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "typography"])
def test_half_the_resolution_is_enough_for_objects(gallery: Any, task: str) -> None:
    def coarse(image: Picture) -> Picture:
        small = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        large = ndimage.zoom(small, (2, 2, 1), order=1, grid_mode=True, mode="nearest")
        return np.clip(np.rint(large), 0, 255).astype(np.uint8)

    for scene in gallery.scenes(task, 30):
        reading = gallery.read_changed(scene, coarse)
        assert sorted((one.shape, one.color) for one in reading.objects) == sorted(
            (item.shape, item.color) for item in scene.items
        )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((96, 96, 3), np.uint8),
        np.zeros((64, 128, 3), np.uint8),
    ],
)
def test_other_sizes_and_types_are_refused(image: Any) -> None:
    with pytest.raises((UserError, TypeError), match=r"\[64, 64, 3\]|float32|read"):
        Oracle(SMALL).read(image)
