"""Scenes to pixels: flat shapes with antialiased edges and crisp letters on a grey ground."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rectiflow.shapeworld.font import word_coverage
from rectiflow.shapeworld.scene import Scene
from rectiflow.shapeworld.shapes import coverage
from rectiflow.shapeworld.world import BACKGROUND, PALETTE, World

Image = NDArray[np.uint8]


def _paint(mask: NDArray[np.float32], color: str) -> Image:
    """Blend a colour over the background by coverage, [h, w] to [h, w, 3]."""
    ground = np.array(BACKGROUND, np.float32)
    blend = ground + mask[..., None] * (np.array(PALETTE[color], np.float32) - ground)
    return np.rint(blend).astype(np.uint8)


# All that the worlds show at their own size, some 30 and 360; at larger ones there may be more.
@lru_cache(maxsize=512)
def _painted_shape(
    shape: str, radius_px: float, offset_px: tuple[float, float], color: str
) -> Image:
    return _paint(coverage(shape, radius_px, offset_px), color)


def _paste(image: Image, patch: Image, left: int, top: int) -> None:
    """Copy a patch; what would fall off the canvas is background by construction."""
    height, width = image.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + patch.shape[1], width), min(top + patch.shape[0], height)
    image[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]


def render(world: World, scene: Scene, *, scale: int = 1) -> Image:
    """Draw a scene as uint8 RGB, [scale * canvas height, scale * canvas width, 3]."""
    width, height = world.canvas_size_px
    image = np.empty((height * scale, width * scale, 3), np.uint8)
    image[:] = BACKGROUND
    for item in scene.items:
        x, y = item.center_px[0] * scale, item.center_px[1] * scale
        left, top = int(x), int(y)
        patch = _painted_shape(item.shape, item.radius_px * scale, (x - left, y - top), item.color)
        # Boxes are apart by the world's gap, so patches never overlap.
        half = patch.shape[0] // 2
        _paste(image, patch, left - half, top - half)
    if scene.word is not None:
        patch = _paint(word_coverage(scene.word.text, world.glyph_scale * scale), scene.word.color)
        left = round(scene.word.center_px[0] * scale - patch.shape[1] / 2)
        top = round(scene.word.center_px[1] * scale - patch.shape[0] / 2)
        _paste(image, patch, left, top)
    return image
