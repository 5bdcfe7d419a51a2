"""Reads a row of blobs as a word: glyph correlation in cells at the font's fixed pitch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rectiflow.shapeworld.font import GLYPH_ROWS, glyph
from rectiflow.shapeworld.reading import UNREADABLE, Box, ReadWord
from rectiflow.shapeworld.segmentation import Piece, ramp
from rectiflow.shapeworld.world import World

Floats = NDArray[np.float32]

#: A letter is told when its correlation and its lead over the next glyph reach these.
_MIN_LETTER_SCORE = 0.78
_MIN_LETTER_LEAD = 0.03
#: A row of blobs is writing when the mean correlation of its cells reaches this.
_MIN_WORD_SCORE = 0.65
#: How much wider than one dot the gap between two letters may look.
_MAX_LOST_GAP_PX = 3
#: Glyphs are tried crisp and as blurred as a lossy picture makes their thin strokes.
_BLURS_PX = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Blobs of one colour side by side: their numbers and the box around them."""

    members: tuple[int, ...]
    box: Box


def normalized(vectors: Floats) -> Floats:
    """Make vectors [..., n] zero-mean and of unit length; constant ones become zero."""
    centered = vectors - vectors.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centered, axis=-1, keepdims=True)
    return centered / np.where(length > 1e-3, length, np.inf)


def _half_shifted(coverage: Floats, down: int, right: int) -> Floats:
    """Move by half a pixel down and/or right."""
    if down:
        coverage = 0.5 * (coverage + np.roll(coverage, 1, axis=0))
    return 0.5 * (coverage + np.roll(coverage, 1, axis=1)) if right else coverage


def _blurred(coverage: Floats, sigma_px: float) -> Floats:
    """Blur, and scale so that the purest pixel is full, as the oracle measures colours."""
    if sigma_px == 0.0:
        return coverage
    blurred = np.asarray(ndimage.gaussian_filter(coverage, sigma_px), np.float32)
    return np.minimum(blurred / np.quantile(blurred, 0.95), 1.0)


def _around(first: Box, second: Box) -> Box:
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


class WordReader:
    """Finds the word that a row of blobs spells in a world's font."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._scale = scale = world.glyph_scale
        self._letters = world.letters
        self._margin = margin = scale // 2
        self._cell = ((GLYPH_ROWS + 1) * scale, world.glyph_pitch_px)
        # How far a row's box may be from the word's.
        self._slack_px = scale if scale > 2 else 2
        padded = [np.pad(glyph(letter, scale), margin) for letter in self._letters]
        # Variant 4 * blur + 2 * down + right, glyph, pixel.
        self._templates = normalized(
            np.stack(
                [
                    ramp(_blurred(_half_shifted(one, *divmod(phase, 2)), blur))
                    for blur in _BLURS_PX
                    for phase in range(4)
                    for one in padded
                ]
            ).reshape(4 * len(_BLURS_PX), len(padded), -1)
        )

    def rows(self, pieces: list[Piece]) -> list[_Row]:
        """Join blobs of one colour that overlap in height and are about a letter gap apart."""
        reach = self._scale + _MAX_LOST_GAP_PX
        rows: list[_Row] = []
        for number in sorted(range(len(pieces)), key=lambda n: pieces[n].box[0]):
            box, members = pieces[number].box, (number,)
            kept: list[_Row] = []
            for row in rows:
                overlap = min(row.box[3], box[3]) - max(row.box[1], box[1])
                least = min(row.box[3] - row.box[1], box[3] - box[1])
                same = pieces[row.members[0]].color == pieces[number].color
                gap = max(row.box[0], box[0]) - min(row.box[2], box[2])
                if same and gap <= reach and 2 * overlap >= least:
                    box, members = _around(row.box, box), row.members + members
                else:
                    kept.append(row)
            rows = [*kept, _Row(members=members, box=box)]
        return [row for row in rows if self._may_be_word(row.box)]

    def _may_be_word(self, box: Box) -> bool:
        height = box[3] - box[1]
        return abs(height - GLYPH_ROWS * self._scale) <= self._slack_px and bool(self._lengths(box))

    def _lengths(self, box: Box) -> list[int]:
        """Numbers of letters whose word is about as wide as a box."""
        width = box[2] - box[0]
        return [
            length
            for length in self._world.word_lengths
            if abs(self._world.word_size_px(length)[0] - width) <= self._slack_px
        ]

    def read(self, row: _Row, pieces: list[Piece]) -> ReadWord | None:
        """Return the likeliest word in a row, or None when it is no writing."""
        coverage = np.maximum.reduce([pieces[number].coverage for number in row.members])
        margin = self._cell[0]
        padded = np.pad(coverage, margin)
        best: tuple[float, ReadWord] | None = None
        for length in self._lengths(row.box):
            word = self._fit(padded, margin, row.box, length, pieces[row.members[0]].color)
            if best is None or word.score > best[0]:
                best = (word.score, word)
        return best[1] if best is not None and best[0] >= _MIN_WORD_SCORE else None

    def _fit(self, padded: Floats, margin: int, box: Box, length: int, color: str) -> ReadWord:
        """Slide a word of `length` cells around a box; read it where the cells fit best."""
        slack, pitch = self._slack_px, self._world.glyph_pitch_px
        width, height = self._world.word_size_px(length)
        # Where the middle of the box would put the word's first cell, in padded pixels.
        left = round(0.5 * (box[0] + box[2] - width)) + margin - self._margin
        top = round(0.5 * (box[1] + box[3] - height)) + margin - self._margin
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._cell)
        shifts = np.arange(-slack, slack + 1)
        cells = windows[
            (top + shifts)[:, None, None],
            (left + shifts)[None, :, None] + pitch * np.arange(length)[None, None, :],
        ]
        vectors = normalized(cells.reshape(*cells.shape[:3], -1))
        # down, right, place, variant, glyph
        scores = np.tensordot(vectors, self._templates, axes=(-1, -1))
        means = scores.max(axis=-1).mean(axis=2)
        down, right, variant = np.unravel_index(int(means.argmax()), means.shape)
        fits = scores[down, right, :, variant]
        x0 = float(left + shifts[right] + self._margin - margin) + 0.5 * (int(variant) % 2)
        y0 = float(top + shifts[down] + self._margin - margin) + 0.5 * (int(variant) // 2 % 2)
        return ReadWord(
            text="".join(self._letter(fit) for fit in fits),
            color=color,
            box=(x0, y0, x0 + width, y0 + height),
            center_px=(x0 + 0.5 * width, y0 + 0.5 * height),
            score=float(means.max()),
        )

    def _letter(self, fit: Floats) -> str:
        order = np.argsort(-fit)
        lead = fit[order[0]] - fit[order[1]] if len(order) > 1 else 1.0
        told = fit[order[0]] >= _MIN_LETTER_SCORE and lead >= _MIN_LETTER_LEAD
        return self._letters[order[0]] if told else UNREADABLE
