"""The 5x7 capital letters that the world writes with; one row of a glyph is five 0/1 digits."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

GLYPH_COLUMNS = 5
GLYPH_ROWS = 7
#: Columns from one letter's left edge to the next one's.
GLYPH_PITCH = GLYPH_COLUMNS + 1

_ROWS: dict[str, str] = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "11111 00100 00100 00100 00100 00100 11111",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 01010 01010 00100 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}

LETTERS = "".join(_ROWS)


@cache
def glyph(letter: str, scale: int) -> NDArray[np.float32]:
    """Return one letter as coverage in {0, 1}, [7 * scale, 5 * scale]."""
    bits = np.array([[float(bit) for bit in row] for row in _ROWS[letter].split()], np.float32)
    return np.kron(bits, np.ones((scale, scale), np.float32))


def word_coverage(text: str, scale: int) -> NDArray[np.float32]:
    """Return a whole word as coverage in {0, 1}, [7 * scale, (6 * len(text) - 1) * scale]."""
    width = (GLYPH_PITCH * len(text) - 1) * scale
    coverage = np.zeros((GLYPH_ROWS * scale, width), np.float32)
    for place, letter in enumerate(text):
        left = place * GLYPH_PITCH * scale
        coverage[:, left : left + GLYPH_COLUMNS * scale] = glyph(letter, scale)
    return coverage
