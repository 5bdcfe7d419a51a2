"""Pictures show each object in its colour at its place, and scale by whole numbers."""

import numpy as np
import pytest

from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import Item, Scene, sample_scene
from rectiflow.shapeworld.world import BACKGROUND, FULL, PALETTE, World


def test_size_and_background(world: World) -> None:
    image = render(world, Scene(task="counting", items=()))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert (image == BACKGROUND).all()


@pytest.mark.parametrize("shape", [s for s in FULL.shapes if s not in ("ring", "frame", "moon")])
@pytest.mark.parametrize("center", [(20.0, 40.0), (20.5, 40.25)])
def test_solid_shapes_have_their_color_in_the_middle(
    shape: str, center: tuple[float, float]
) -> None:
    item = Item(shape=shape, color="orange", center_px=center, radius_px=9.0)
    image = render(FULL, Scene(task="colors", items=(item,)))
    assert tuple(image[40, 20]) == PALETTE["orange"]
    painted = (image != BACKGROUND).any(axis=2)
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    for line, middle in ((columns, center[0]), (rows, center[1])):
        assert middle - 10 <= line[0] < middle < line[-1] < middle + 10


def test_pictures_hold_only_mixtures_of_their_colors(world: World) -> None:
    for index in range(100):
        scene = sample_scene(world, split="val", seed=0, index=index)
        names = {item.color for item in scene.items}
        if scene.word is not None:
            names.add(scene.word.color)
        ground = np.array(BACKGROUND, float)
        offsets = render(world, scene).reshape(-1, 3) - ground
        off_line = []
        for name in names:
            ray = np.array(PALETTE[name]) - ground
            part = np.clip(offsets @ ray / (ray @ ray), 0, 1)
            off_line.append(np.abs(offsets - part[:, None] * ray).max(axis=1))
        assert np.min(off_line, axis=0).max() <= 1.0


def test_larger_pictures_shrink_to_the_small_one(world: World) -> None:
    for index in range(60):
        scene = sample_scene(world, split="val", seed=1, index=index)
        small, large = render(world, scene), render(world, scene, scale=2)
        assert large.shape == (128, 128, 3)
        shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small).mean() < 0.5
