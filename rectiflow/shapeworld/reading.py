"""What the oracle found in a picture: objects, at most one word, and blobs it cannot name.

Boxes are (x0, y0, x1, y1) and centres (x, y), in pixels of the world's canvas.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rectiflow.shapeworld.scene import Point

Box = tuple[float, float, float, float]

#: Stands for a colour that is far from the whole palette.
UNKNOWN = "unknown"
#: Stands for a letter that cannot be told.
UNREADABLE = "?"


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One recognised object; `score` is its correlation with the best template, at most 1."""

    shape: str
    color: str
    box: Box
    center_px: Point
    score: float


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Something of one colour that is no shape of the world, and how like each shape it is."""

    color: str
    box: Box
    center_px: Point
    similarity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ReadWord:
    """A written word; letters that cannot be told are "?". `score` is the mean correlation."""

    text: str
    color: str
    box: Box
    center_px: Point
    score: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Everything found in one picture; objects by falling score."""

    objects: tuple[Detection, ...]
    word: ReadWord | None
    unknown: tuple[Blob, ...]

    @property
    def num_unknown(self) -> int:
        """How many blobs are neither a shape of the world nor part of a word."""
        return len(self.unknown)
