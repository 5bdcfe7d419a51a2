"""Pictures to blobs: connected pieces of one colour, each with its own coverage map.

A pixel between the background and a colour lies on the line between them; its place on that
line is the coverage. Projecting on the line of the blob's own colour undoes antialiasing, blur
and noise across the line, and so the shape can be compared with a rendered one.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rectiflow.shapeworld.reading import UNKNOWN, Box
from rectiflow.shapeworld.world import BACKGROUND, PALETTE, World

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Coverage up to the first counts as none, from the second as all.
_RAMP = (0.2, 0.8)
#: Coverage in the smoothed picture from which a pixel is foreground.
_FOREGROUND = 0.4
#: Blobs with fewer foreground pixels are specks.
_MIN_AREA_PX = 12
#: A blob's colour may be thinned by the background down to this coverage, as thin strokes are.
_MIN_PURITY = 0.7
#: RGB distance beyond which a colour is none of the palette's; half the least distance in it.
_MAX_COLOR_DISTANCE = 60.0
#: RGB distance of the border's median up to which it is taken as the (tinted) background.
_MAX_TINT = 60.0
#: Part of a blob's core that another colour must have to be an object of its own.
_MIN_SECOND_COLOR = 0.2
_EIGHT = np.ones((3, 3), np.bool_)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One blob: palette colour or "unknown", box, centre of mass (x, y), coverage on the canvas."""

    color: str
    box: Box
    centroid_px: tuple[float, float]
    coverage: Floats


def _labelled(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Number the 8-connected parts of a mask from 1; also return how many there are."""
    labels, count = cast(tuple[NDArray[np.int32], int], ndimage.label(mask, _EIGHT))
    return labels, count


def _eroded(mask: Mask) -> Mask:
    """Take one pixel off all around, but not at the canvas's edge."""
    padded = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), np.bool_)
    padded[1:-1, 1:-1] = mask
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]


def _dilated(mask: Mask) -> Mask:
    """Add one pixel all around."""
    return ~_eroded(~mask)


def ramp(coverage: Floats) -> Floats:
    """Stretch coverage so that edges are steep again after blur; values in [0, 1]."""
    low, high = _RAMP
    return np.clip((coverage - low) / (high - low), 0.0, 1.0).astype(np.float32)


def _smoothed(image: Floats) -> Floats:
    """Blur by the binomial filter [1, 2, 1] / 4 along both axes."""
    padded = np.concatenate([image[:1], image, image[-1:]])
    rows: Floats = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    rows = np.concatenate([rows[:, :1], rows, rows[:, -1:]], axis=1)
    return 0.0625 * (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:])


def _median(values: Floats) -> Floats:
    """Along the first axis; `np.median` takes ten times as long on so few values."""
    middle = len(values) // 2
    ordered = np.sort(values, axis=0)
    return ordered[middle] if len(values) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _background(image: Floats) -> Floats:
    """The median of the border, or the world's background where that is something else."""
    border = np.concatenate(
        [image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, 0], image[:, -1]]
    )
    nominal = np.array(BACKGROUND, np.float32)
    found = _median(border)
    return found if np.linalg.norm(found - nominal) <= _MAX_TINT else nominal


def _distances(offsets: Floats, rays: Floats, purity: float) -> tuple[Floats, Floats]:
    """Distance from points [n, 3] to the rays [k, 3], from `purity` of their length to the end.

    Returns the distances and the coverages at the nearest points, both [n, k]. Points and rays
    start at the background.
    """
    lengths = np.einsum("kc,kc->k", rays, rays)
    along = offsets @ rays.T
    reach = np.clip(along / lengths, purity, 1.0)
    squared = np.einsum("nc,nc->n", offsets, offsets)[:, None]
    squared = squared - 2 * reach * along + reach * reach * lengths
    return np.sqrt(np.maximum(squared, 0.0)), reach


def _grown(window: tuple[slice, slice]) -> tuple[slice, slice]:
    """As far around a blob as its pixels count: what `_dilated` adds when applied twice."""
    rows, columns = (slice(max(side.start - 2, 0), side.stop + 2) for side in window)
    return rows, columns


def _piece(
    color: str,
    blob: Mask,
    part: Floats,
    region: tuple[slice, slice],
    canvas: tuple[int, ...],
) -> Piece:
    """Measure a blob whose mask and coverage are those of a region of the canvas."""
    coverage = np.zeros(canvas, np.float32)
    coverage[region] = part
    rows, columns = np.flatnonzero(blob.any(axis=1)), np.flatnonzero(blob.any(axis=0))
    left, top = float(region[1].start), float(region[0].start)
    mass = max(float(coverage.sum()), 1e-6)
    y, x = (np.arange(side, dtype=np.float32) + 0.5 for side in canvas)
    return Piece(
        color=color,
        box=(
            left + float(columns[0]),
            top + float(rows[0]),
            left + float(columns[-1] + 1),
            top + float(rows[-1] + 1),
        ),
        centroid_px=(
            float(coverage.sum(axis=0) @ x) / mass,
            float(coverage.sum(axis=1) @ y) / mass,
        ),
        coverage=coverage,
    )


class Segmenter:
    """Cuts pictures of a world into pieces."""

    def __init__(self, world: World) -> None:
        self._colors = world.colors
        self._palette = np.array([PALETTE[color] for color in world.colors], np.float32)

    def pieces(self, image: Floats) -> list[Piece]:
        """Return the pieces of a picture [h, w, 3] with values in [0, 255]."""
        ground = _background(image)
        rays = self._palette - ground
        offsets = image - ground
        smooth = _smoothed(offsets)
        foreground = self._foreground(smooth, rays)
        labels, _ = _labelled(foreground)
        found: list[Piece] = []
        occupied = labels > 0
        for number, window in enumerate(ndimage.find_objects(labels), start=1):
            region = _grown(window)
            blob = labels[region] == number
            if np.count_nonzero(blob) < _MIN_AREA_PX:
                continue
            for part in self._split(blob, smooth[region], rays):
                others = occupied[region] & ~part
                color, coverage = self._coverage(part, offsets[region], rays, others)
                found.append(_piece(color, part, coverage, region, foreground.shape))
        return found

    def _foreground(self, smooth: Floats, rays: Floats) -> Mask:
        flat = smooth.reshape(-1, 3)
        # Only what is far enough from the background for any colour needs the full look.
        near = np.einsum("nc,nc->n", flat, flat) > (
            _FOREGROUND**2 * np.einsum("kc,kc->k", rays, rays).min() * 0.5
        )
        foreground = np.zeros(len(flat), np.bool_)
        distance, reach = _distances(flat[near], rays, 0.0)
        best = distance.argmin(axis=1)[:, None]
        foreground[near] = np.take_along_axis(reach, best, 1)[:, 0] > _FOREGROUND
        return foreground.reshape(smooth.shape[:2])

    def _split(self, blob: Mask, smooth: Floats, rays: Floats) -> list[Mask]:
        """Cut a blob where two colours touch."""
        core = _eroded(blob)
        size = np.count_nonzero(core)
        if size < _MIN_AREA_PX:
            return [blob]
        # Any coverage: what leaks between two near strokes is their own colour, thinned.
        nearest = _distances(smooth[core], rays, 0.0)[0].argmin(axis=1)
        counts = np.bincount(nearest, minlength=len(rays))
        strong = np.flatnonzero(counts >= max(_MIN_AREA_PX, _MIN_SECOND_COLOR * size))
        if len(strong) < 2:
            return [blob]
        winner = np.zeros(blob.shape, np.int64)
        winner[core] = nearest + 1
        away = [np.asarray(ndimage.distance_transform_edt(winner != color + 1)) for color in strong]
        owner = np.argmin(away, axis=0)
        parts: list[Mask] = []
        for rank in range(len(strong)):
            labels, number = _labelled(blob & (owner == rank))
            sizes = np.bincount(labels.ravel(), minlength=number + 1)
            parts += [labels == k for k in range(1, number + 1) if sizes[k] >= _MIN_AREA_PX]
        return parts

    def _coverage(
        self, blob: Mask, offsets: Floats, rays: Floats, others: Mask
    ) -> tuple[str, Floats]:
        """A blob's colour, and how much of each pixel it covers."""
        color, ray = self._color(blob, offsets, rays)
        near = _dilated(_dilated(blob)) & ~others
        along = offsets @ ray / max(float(ray @ ray), 1.0)
        return color, np.where(near, ramp(along), np.float32(0.0))

    def _color(self, blob: Mask, offsets: Floats, rays: Floats) -> tuple[str, Floats]:
        """Name a blob's colour by the median of its core; also return the measured ray."""
        core = _eroded(blob)
        has_core = np.count_nonzero(core) >= _MIN_AREA_PX
        inside = offsets[core if has_core else blob]
        if not has_core:
            # Strokes too thin for a core: take the purest third.
            strength = np.einsum("nc,nc->n", inside, inside)
            inside = inside[strength >= np.quantile(strength, 2 / 3)]
        ray = _median(inside)
        distance = _distances(ray[None], rays, _MIN_PURITY)[0][0]
        best = int(distance.argmin())
        return self._colors[best] if distance[best] <= _MAX_COLOR_DISTANCE else UNKNOWN, ray
