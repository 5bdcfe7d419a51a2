"""Both worlds, and pictures of theirs that the oracle has read, shared by this folder's tests."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.reading import Reading
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import Item, Scene, Word, sample_scene
from rectiflow.shapeworld.world import FULL, SMALL, World

Picture = NDArray[np.uint8]


@dataclass
class Gallery:
    """Scenes of one world, seen and held out, with what the oracle reads in their pictures."""

    world: World
    oracle: Oracle
    known: dict[tuple[tuple[Item, ...], Word | None], Reading] = field(default_factory=dict)
    drawn: dict[str, list[Scene]] = field(default_factory=dict)

    def scenes(self, task: str, number: int) -> list[Scene]:
        """Every fourth scene is a held-out one."""
        scenes = self.drawn.setdefault(task, [])
        scenes += [
            sample_scene(
                self.world, split="val", seed=11, index=index, task=task, held_out=index % 4 == 3
            )
            for index in range(len(scenes), number)
        ]
        return scenes[:number]

    def read(self, scene: Scene) -> Reading:
        """Read a clean picture; the small world shows many scenes twice."""
        key = (scene.items, scene.word)
        if key not in self.known:
            self.known[key] = self.oracle.read(render(self.world, scene))
        return self.known[key]

    def read_changed(self, scene: Scene, change: Callable[[Picture], Picture]) -> Reading:
        """Read a picture that something has happened to."""
        return self.oracle.read(change(render(self.world, scene)))


@pytest.fixture(scope="session", params=[SMALL, FULL], ids=lambda world: world.name)
def gallery(request: pytest.FixtureRequest) -> Gallery:
    return Gallery(world=request.param, oracle=Oracle(request.param))


@pytest.fixture(params=[SMALL, FULL], ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    return request.param
