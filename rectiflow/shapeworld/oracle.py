"""Reads pictures back: which shapes in which colours are where, and which word is written.

Blobs are compared with rendered templates by zero-mean correlation over sizes and subpixel
shifts. The oracle is lenient about blur, noise and tints, and strict about shapes: what is not
clearly one shape of the world is an unknown blob.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.lettering import WordReader, normalized
from rectiflow.shapeworld.reading import Blob, Detection, Reading, ReadWord
from rectiflow.shapeworld.segmentation import Piece, Segmenter, ramp
from rectiflow.shapeworld.shapes import OUTLINES, coverage
from rectiflow.shapeworld.world import World

Floats = NDArray[np.float32]

#: Correlation with the best template from which a blob is an object.
_MIN_SCORE = 0.86
#: How much the best shape must lead over the next one.
_MIN_LEAD = 0.015
#: Templates go this far below and above the world's radii.
_RADIUS_SLACK_PX = 1.0
_SHIFTS_PX = (-0.5, 0.0, 0.5)
#: Templates whose correlation cannot reach this decide nothing about an object; less by what
#: rounding may take.
_MIN_DECIDING = _MIN_SCORE - _MIN_LEAD - 1e-3


@dataclass(frozen=True, kw_only=True)
class _Templates:
    """Coverage windows of edge `size_px` with the centre of mass near the middle."""

    size_px: int
    #: Normalised [n, size * size].
    vectors: Floats
    #: Before that: the sum of each row [size, n], the mean [n], and the length around it [n].
    rows: Floats
    mean: Floats
    length: Floats
    radius_px: Floats

    def scores(self, window: Floats) -> Floats:
        """Correlation of a window [size, size] with each template."""
        return self.vectors @ normalized(window.ravel())

    def deciding_scores(self, window: Floats) -> Floats:
        """As `scores`, but -1 for most of those that cannot reach `_MIN_DECIDING`.

        Coverage is in [0, 1], so in no row do two windows share more than the emptier one has
        there. That bounds their product, at a fraction of its cost.
        """
        rows = window.sum(axis=1)
        total = float(rows.sum())
        length = math.sqrt(max(float(np.vdot(window, window)) - total * total / window.size, 0.0))
        shared = np.minimum(self.rows, rows[:, None]).sum(axis=0)
        able = np.flatnonzero(shared - total * self.mean >= _MIN_DECIDING * length * self.length)
        scores = np.full(len(self.vectors), -1.0, np.float32)
        scores[able] = self.vectors[able] @ normalized(window.ravel())
        return scores


@cache
def _unit_geometry(shape: str) -> tuple[tuple[float, float], tuple[float, float, float, float]]:
    """Centre of mass (x, y) and box of a shape of radius 1."""
    radius = 40
    mask = coverage(shape, float(radius))
    line = (np.arange(len(mask)) + 0.5) / radius - len(mask) / (2 * radius)
    mass = mask.sum()
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    x0, y0, x1, y1 = (edge / radius - len(mask) / (2 * radius) for edge in edges)
    center = float(mask.sum(axis=0) @ line / mass), float(mask.sum(axis=1) @ line / mass)
    return center, (float(x0), float(y0), float(x1), float(y1))


@cache
def _templates(radii_px: tuple[float, ...]) -> _Templates:
    """Windows of every shape there is: those that a world lacks are decoys."""
    steps = np.arange(min(radii_px) - _RADIUS_SLACK_PX, max(radii_px) + _RADIUS_SLACK_PX + 0.1, 0.5)
    size = 2 * int(np.ceil(steps[-1] * 1.3))
    windows: list[Floats] = []
    radii: list[float] = []
    for shape in OUTLINES:
        (mass_x, mass_y), _ = _unit_geometry(shape)
        for radius in steps:
            for dx in _SHIFTS_PX:
                for dy in _SHIFTS_PX:
                    offset = (dx - mass_x * radius, dy - mass_y * radius)
                    windows.append(ramp(coverage(shape, float(radius), offset, size)))
                    radii.append(float(radius))
    stacked = np.stack(windows)
    flat = stacked.reshape(len(windows), -1)
    mean = flat.mean(axis=1)
    return _Templates(
        size_px=size,
        vectors=normalized(flat),
        rows=np.ascontiguousarray(stacked.sum(axis=2).T),
        mean=mean,
        length=np.linalg.norm(flat - mean[:, None], axis=1),
        radius_px=np.array(radii, np.float32),
    )


class Oracle:
    """Reads pictures of one world.

    Args:
        world: its shapes, colours and letters are the only ones that are found.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._segmenter = Segmenter(world)
        self._words = WordReader(world)
        self._templates = _templates(world.radii_px)
        self._shapes = tuple(OUTLINES)
        self._is_known = np.array([shape in world.shapes for shape in self._shapes])

    def read(self, image: NDArray[np.uint8]) -> Reading:
        """Read a picture, uint8 RGB [h, w, 3] of the canvas's size or a multiple of it.

        Raises:
            UserError: for another size or type.
        """
        pieces = self._segmenter.pieces(self._at_scale_one(image))
        found = [self._name(piece) for piece in pieces]
        word, spelled = self._word(pieces, found)
        rest = [one for number, one in enumerate(found) if number not in spelled]
        objects = [one for one in rest if isinstance(one, Detection)]
        return Reading(
            objects=tuple(sorted(objects, key=lambda one: -one.score)),
            word=word,
            unknown=tuple(one for one in rest if isinstance(one, Blob)),
        )

    def _at_scale_one(self, image: NDArray[np.uint8]) -> Floats:
        width, height = self._world.canvas_size_px
        scale = image.shape[0] // height
        if (
            image.dtype != np.uint8
            or scale < 1
            or image.shape != (scale * height, scale * width, 3)
        ):
            raise UserError(
                f"the oracle of world {self._world.name!r} reads uint8 pictures of "
                f"[{height}, {width}, 3] or a whole multiple; got {image.dtype} {list(image.shape)}"
            )
        if scale == 1:
            return image.astype(np.float32)
        blocks = image.reshape(height, scale, width, scale, 3).astype(np.float32)
        return blocks.mean(axis=(1, 3))

    def _window(self, piece: Piece) -> Floats:
        """A piece's coverage around its centre of mass, as large as a template."""
        size = self._templates.size_px
        window = np.zeros((size, size), np.float32)
        # Where the window's corner lies on the canvas, and the part of the canvas inside it.
        left, top = (round(at) - size // 2 for at in piece.centroid_px)
        inside = piece.coverage[max(top, 0) : top + size, max(left, 0) : left + size]
        y, x = max(-top, 0), max(-left, 0)
        window[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        return window

    def _name(self, piece: Piece) -> Detection | Blob:
        window = self._window(piece)
        # Templates of one shape are neighbours.
        table = self._templates.deciding_scores(window).reshape(len(self._shapes), -1)
        best = table.max(axis=1)
        known = np.where(self._is_known, best, -1.0)
        order = np.argsort(-known)
        top = int(order[0])
        lead = known[top] - known[order[1]] if len(order) > 1 else 1.0
        if known[top] < _MIN_SCORE or lead < _MIN_LEAD or best.argmax() != top:
            return self._blob(piece, window)
        shape = self._shapes[top]
        radius = float(self._templates.radius_px.reshape(table.shape)[top, table[top].argmax()])
        mass, (x0, y0, x1, y1) = _unit_geometry(shape)
        x = piece.centroid_px[0] - mass[0] * radius
        y = piece.centroid_px[1] - mass[1] * radius
        return Detection(
            shape=shape,
            color=piece.color,
            box=(x + x0 * radius, y + y0 * radius, x + x1 * radius, y + y1 * radius),
            center_px=(x, y),
            score=float(best[top]),
        )

    def _blob(self, piece: Piece, window: Floats) -> Blob:
        best = self._templates.scores(window).reshape(len(self._shapes), -1).max(axis=1)
        x0, y0, x1, y1 = piece.box
        return Blob(
            color=piece.color,
            box=piece.box,
            center_px=(0.5 * (x0 + x1), 0.5 * (y0 + y1)),
            similarity={
                shape: float(best[place])
                for place, shape in enumerate(self._shapes)
                if self._is_known[place]
            },
        )

    def _word(
        self, pieces: list[Piece], found: list[Detection | Blob]
    ) -> tuple[ReadWord | None, frozenset[int]]:
        """Return the best word and the numbers of the blobs that spell it."""
        best: tuple[ReadWord | None, frozenset[int]] = (None, frozenset())
        for row in self._words.rows(pieces):
            shapes = [found[number] for number in row.members]
            as_objects = [one.score for one in shapes if isinstance(one, Detection)]
            word = self._words.read(row, pieces)
            if word is None or word.score <= (best[0].score if best[0] else 0.0):
                continue
            if len(as_objects) == len(shapes) and min(as_objects) >= word.score:
                continue
            best = (word, frozenset(row.members))
        return best
