"""Scenes: what one picture shows, drawn as a pure function of (world, split, seed, index).

The first stop on the walk of a sample. Nothing is stored: any scene can be drawn again.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rectiflow.base.errors import UserError
from rectiflow.base.seeds import derive_seed, numpy_generator
from rectiflow.shapeworld.world import (
    World,
    is_held_out_count,
    is_held_out_pair,
    is_held_out_shapes,
    is_held_out_word,
)

#: GenEval's six object tasks, and writing.
TASKS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "typography",
)
SPLITS = ("train", "val")

#: Direction from the second object to the first, x to the right and y down.
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

#: Which kind of held-out combination makes a scene of a task a held-out one.
_HELD_OUT_KIND = {
    "single_object": "pair",
    "two_object": "shapes",
    "counting": "count",
    "colors": "pair",
    "position": "shapes",
    "color_attr": "pair",
    "typography": "word",
}

#: A relation's offset across its direction is at most this part of the offset along it, so that
#: GenEval's rule sees one relation and never two.
_MAX_SLANT = 0.5

Content = tuple[tuple[str, str], ...]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object: shape, colour, centre (x, y) and half the edge of its box, in pixels."""

    shape: str
    color: str
    center_px: Point
    radius_px: float


@dataclass(frozen=True, kw_only=True)
class Word:
    """One written word: capitals, colour and the centre (x, y) of its box, in pixels."""

    text: str
    color: str
    center_px: Point


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one picture shows. In `position` scenes the first item relates to the second."""

    task: str
    items: tuple[Item, ...]
    word: Word | None = None


def held_out_kinds(content: Content) -> frozenset[str]:
    """Return which kinds of held-out combination a set of (shape, colour) objects contains."""
    shapes = [shape for shape, _ in content]
    distinct = sorted(set(shapes))
    kinds = {
        "pair": any(is_held_out_pair(shape, color) for shape, color in content),
        "shapes": any(is_held_out_shapes(a, b) for a, b in combinations(distinct, 2)),
        "count": any(is_held_out_count(shapes.count(shape), shape) for shape in distinct),
    }
    return frozenset(kind for kind, found in kinds.items() if found)


def relation_between(first: Point, second: Point) -> str:
    """Return the relation that the first centre has to the second along the longer offset."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


@cache
def contents(world: World, task: str, *, held_out: bool) -> tuple[Content, ...]:
    """Return every set of objects that a task may show.

    Seen contents have no held-out combination of any kind. Held-out contents have the kind that
    their task is about and no other, so that a score on them measures one thing.
    """
    objects = [(shape, color) for shape in world.shapes for color in world.colors]
    match task:
        case "single_object" | "colors":
            every = [(one,) for one in objects]
        case "counting":
            every = [(one,) * count for count in world.counts for one in objects]
        case "two_object" | "position":
            every = [(a, b) for a in objects for b in objects if a[0] != b[0]]
        case _:
            every = [(a, b) for a in objects for b in objects if a[0] != b[0] and a[1] != b[1]]
    wanted = frozenset({_HELD_OUT_KIND[task]} if held_out else ())
    return tuple(content for content in every if held_out_kinds(content) == wanted)


@cache
def words(world: World, *, held_out: bool) -> tuple[str, ...]:
    """Return the words of a world that are held out, or those that are not."""
    return tuple(word for word in world.words if is_held_out_word(word) == held_out)


@cache
def _lattice(world: World, half_width_px: float, half_height_px: float) -> NDArray[np.float64]:
    """All centres (x, y), [n, 2], where a box of this half size fits on the canvas."""
    lines: list[NDArray[np.float64]] = []
    for half, side_px in zip((half_width_px, half_height_px), world.canvas_size_px, strict=True):
        steps = np.arange(0, side_px + 1, world.placement_step_px, dtype=np.float64)
        room = half + world.margin_px
        lines.append(steps[(steps >= room) & (steps <= side_px - room)])
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)


def _place(
    world: World, radii: list[float], relation: str | None, rng: np.random.Generator
) -> list[Point]:
    """Draw centres one after another, each among the places left; start again at a dead end."""
    while True:
        centers: list[NDArray[np.float64]] = []
        for radius in radii:
            places = _lattice(world, radius, radius)
            for other, center in zip(radii, centers, strict=False):
                offset = places - center
                apart = np.abs(offset).max(axis=1) >= radius + other + world.min_gap_px
                if relation is not None:
                    direction = np.array(RELATIONS[relation], np.float64)
                    # The new place is the second object: the first lies in `direction` from it.
                    along = -(offset @ direction)
                    across = np.abs(offset @ direction[::-1])
                    apart &= (along > 0) & (across <= _MAX_SLANT * along)
                places = places[apart]
            if not len(places):
                break
            centers.append(places[rng.integers(len(places))])
        if len(centers) == len(radii):
            return [(float(x), float(y)) for x, y in centers]


def _draw_word(world: World, rng: np.random.Generator, *, held_out: bool) -> Word:
    choices = words(world, held_out=held_out)
    text = choices[rng.integers(len(choices))]
    height = world.word_size_px(1)[1]
    # The lattice is for letters: shift the word's centre by that of its first letter.
    shift = 0.5 * world.glyph_pitch_px * (len(text) - 1)
    letter_half = 0.5 * world.word_size_px(1)[0]
    places = _lattice(world, letter_half, 0.5 * height)
    places = places[
        places[:, 0] + 2 * shift + letter_half <= world.canvas_size_px[0] - world.margin_px
    ]
    x, y = places[rng.integers(len(places))]
    color = world.colors[rng.integers(len(world.colors))]
    return Word(text=text, color=color, center_px=(float(x) + shift, float(y)))


def sample_scene(
    world: World,
    *,
    split: str,
    seed: int,
    index: int,
    task: str | None = None,
    held_out: bool = False,
) -> Scene:
    """Draw one scene; equal arguments give equal scenes, whatever was drawn before.

    Args:
        world: what may occur.
        split: "train" or "val"; the two streams are independent.
        seed: names a whole stream.
        index: position in the stream, at least 0.
        task: one of `TASKS`; None draws one.
        held_out: False never shows a held-out combination; True always shows the one that the
            task is about.

    Raises:
        UserError: for an unknown split or task.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if task is not None and task not in TASKS:
        raise UserError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    stream = ("shapeworld", world.name, split)
    task = task or TASKS[derive_seed(seed, *stream, index) % len(TASKS)]
    rng = numpy_generator(seed, *stream, task, index)
    if task == "typography":
        return Scene(task=task, items=(), word=_draw_word(world, rng, held_out=held_out))
    choices = contents(world, task, held_out=held_out)
    content = choices[rng.integers(len(choices))]
    radii = [world.radii_px[rng.integers(len(world.radii_px))] for _ in content]
    relation = list(RELATIONS)[rng.integers(len(RELATIONS))] if task == "position" else None
    centers = _place(world, radii, relation, rng)
    return Scene(
        task=task,
        items=tuple(
            Item(shape=shape, color=color, center_px=center, radius_px=radius)
            for (shape, color), center, radius in zip(content, centers, radii, strict=True)
        ),
    )
