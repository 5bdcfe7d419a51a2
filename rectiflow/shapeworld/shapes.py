"""The outlines of the world's shapes and their pixel coverage.

Renderer and oracle share this geometry. A shape is a predicate on unit coordinates: x to the
right, y down, its bounding box centred on the origin and inside [-1, 1]^2.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Samples per pixel edge when coverage is measured.
SUPERSAMPLING = 5


def _polygon(x: Grid, y: Grid, corners: NDArray[np.float64]) -> Mask:
    """Even-odd rule: a point is inside when a ray to the right crosses the outline oddly often."""
    inside = np.zeros(x.shape, np.bool_)
    for (xa, ya), (xb, yb) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        if ya == yb:
            continue
        crosses = (ya > y) != (yb > y)
        inside ^= crosses & (x < (xb - xa) * (y - ya) / (yb - ya) + xa)
    return inside


def _circle(x: Grid, y: Grid) -> Mask:
    return x * x + y * y <= 1.0


def _square(x: Grid, y: Grid) -> Mask:
    return np.maximum(np.abs(x), np.abs(y)) <= 0.88


def _triangle(x: Grid, y: Grid) -> Mask:
    return _polygon(x, y, np.array([(0.0, -0.92), (1.0, 0.92), (-1.0, 0.92)]))


def _diamond(x: Grid, y: Grid) -> Mask:
    return np.abs(x) / 0.84 + np.abs(y) <= 1.0


def _star(x: Grid, y: Grid) -> Mask:
    turn = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.05, 0.44)
    # The top point is farther from the centre than the two bottom ones: move down by half of it.
    lift = 0.5 * 1.05 * (1.0 - np.cos(np.pi / 5))
    return _polygon(x, y, np.stack([reach * np.sin(turn), lift - reach * np.cos(turn)], axis=1))


def _cross(x: Grid, y: Grid) -> Mask:
    wide, thin = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return (wide <= 1.0) & (thin <= 0.31)


def _ring(x: Grid, y: Grid) -> Mask:
    square = x * x + y * y
    return (square <= 1.0) & (square >= 0.55**2)


def _heart(x: Grid, y: Grid) -> Mask:
    # The sextic heart (u^2 + v^2 - 1)^3 <= u^2 v^3, moved and scaled into the unit box.
    u, v = 1.14 * x, 0.13 - 1.12 * y
    return (u * u + v * v - 1.0) ** 3 - u * u * v**3 <= 0.0


def _moon(x: Grid, y: Grid) -> Mask:
    # A crescent open to the right; its tips end left of the disc's edge, so it is moved right.
    u = x - 0.26
    return (u * u + y * y <= 1.0) & ((u - 0.52) ** 2 + y * y >= 0.86**2)


def _frame(x: Grid, y: Grid) -> Mask:
    reach = np.maximum(np.abs(x), np.abs(y))
    return (reach <= 0.92) & (reach >= 0.5)


OUTLINES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "frame": _frame,
}


@cache
def coverage(
    shape: str, radius_px: float, offset_px: tuple[float, float] = (0.0, 0.0), size_px: int = 0
) -> NDArray[np.float32]:
    """Return how much of each pixel a shape covers, in [0, 1].

    Args:
        shape: a key of `OUTLINES`.
        radius_px: half the edge of the box that the unit square becomes.
        offset_px: where the shape's centre lies, (x, y) from the array's middle.
        size_px: edge of the returned square array, even; 0 takes the smallest that holds the
            shape.
    """
    reach = radius_px + max(abs(offset_px[0]), abs(offset_px[1]))
    size_px = size_px or 2 * int(np.ceil(reach))
    samples = size_px * SUPERSAMPLING
    line = (np.arange(samples) + 0.5) / SUPERSAMPLING - size_px / 2
    x, y = np.meshgrid((line - offset_px[0]) / radius_px, (line - offset_px[1]) / radius_px)
    inside = OUTLINES[shape](x, y).astype(np.float32)
    blocks = inside.reshape(size_px, SUPERSAMPLING, size_px, SUPERSAMPLING)
    return blocks.mean(axis=(1, 3))
