"""Shapes fill their box, none is another one, and letters differ from each other."""

from itertools import combinations

import numpy as np
import pytest

from rectiflow.shapeworld.font import GLYPH_COLUMNS, GLYPH_ROWS, LETTERS, glyph, word_coverage
from rectiflow.shapeworld.shapes import OUTLINES, coverage


@pytest.mark.parametrize("shape", OUTLINES)
def test_box_is_centred_and_filled(shape: str) -> None:
    mask = coverage(shape, 50.0, (0.0, 0.0), 120)
    assert mask.min() == 0.0
    assert mask.max() == 1.0
    for axis in (0, 1):
        inked = np.flatnonzero(mask.any(axis=axis))
        assert inked[0] + inked[-1] == pytest.approx(119, abs=2)
        assert 70 <= inked[-1] - inked[0] + 1 <= 102


@pytest.mark.parametrize("shape", OUTLINES)
def test_whole_pixel_offsets_move_the_mask(shape: str) -> None:
    still, moved = coverage(shape, 9.0, (0.0, 0.0), 32), coverage(shape, 9.0, (3.0, -2.0), 32)
    np.testing.assert_allclose(np.roll(still, (-2, 3), axis=(0, 1)), moved, atol=0.05)
    assert still.sum() == pytest.approx(moved.sum(), rel=0.01)


def test_no_shape_is_like_another() -> None:
    for first, second in combinations(OUTLINES, 2):
        a, b = (coverage(shape, 10.0, (0.0, 0.0), 24).ravel() for shape in (first, second))
        assert np.corrcoef(a, b)[0, 1] < 0.95, (first, second)


def test_glyphs_fill_their_cell_and_differ() -> None:
    for letter in LETTERS:
        bits = glyph(letter, 1)
        assert bits.shape == (GLYPH_ROWS, GLYPH_COLUMNS)
        assert bits.any(axis=1).all() or letter == "J"
        assert bits[:, 0].any()
        assert bits[:, -1].any()
    for first, second in combinations(LETTERS, 2):
        assert np.abs(glyph(first, 1) - glyph(second, 1)).sum() >= 2, (first, second)


def test_words_are_letters_side_by_side() -> None:
    word = word_coverage("AX", 2)
    assert word.shape == (14, 22)
    np.testing.assert_array_equal(word[:, :10], glyph("A", 2))
    np.testing.assert_array_equal(word[:, 12:], glyph("X", 2))
    assert not word[:, 10:12].any()
