"""Wide and tall canvases: scenes lie inside, spread over the length, and the oracle reads them."""

from dataclasses import replace

import pytest

from rectiflow.shapeworld.captions import place_of
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import FULL, SMALL, World


@pytest.mark.parametrize("world", [SMALL, FULL], ids=lambda world: world.name)
@pytest.mark.parametrize("aspect", [(2, 1), (1, 2)])
def test_scenes_of_every_task_are_read_back(world: World, aspect: tuple[int, int]) -> None:
    own = replace(world, aspect=aspect)
    width, height = own.canvas_size_px
    assert (width, height) == (64 * aspect[0], 64 * aspect[1])
    oracle = Oracle(own)
    reached = 0.0
    for task in TASKS:
        scene = sample_scene(own, split="val", seed=5, index=0, task=task)
        reading = oracle.read(render(own, scene))
        expected = sorted((item.shape, item.color) for item in scene.items)
        assert sorted((found.shape, found.color) for found in reading.objects) == expected
        for item in scene.items:
            x, y = item.center_px
            assert item.radius_px < x < width - item.radius_px
            assert item.radius_px < y < height - item.radius_px
            reached = max(reached, x, y)
        if scene.word is not None:
            assert reading.word is not None
            assert reading.word.text == scene.word.text
    assert reached > 64


def test_places_are_shares_of_each_side() -> None:
    wide = replace(SMALL, aspect=(2, 1))
    assert place_of(wide, (64.0, 32.0)) == "center"
    assert place_of(wide, (32.0, 32.0)) == "left"
    assert place_of(SMALL, (32.0, 32.0)) == "center"
