"""What a world may contain: canvas, shapes, colours, sizes, words, and what is held out.

A world is a value. `FULL` is the whole world, `SMALL` a subset for short runs. Held-out
combinations are rules on names, so a subset's held-out set is the full one's restricted to it.
"""

from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from itertools import product

from rectiflow.base.config import LATER
from rectiflow.base.errors import UserError
from rectiflow.shapeworld.font import GLYPH_PITCH, GLYPH_ROWS, LETTERS
from rectiflow.shapeworld.shapes import OUTLINES
from rectiflow.shapeworld.words import COMMON_WORDS

Color = tuple[int, int, int]

BACKGROUND: Color = (128, 128, 128)

#: GenEval's ten colours; any two, and each and the background, are far apart in CIE Lab.
PALETTE: dict[str, Color] = {
    "red": (222, 32, 38),
    "orange": (255, 136, 10),
    "yellow": (255, 228, 40),
    "green": (24, 158, 62),
    "blue": (38, 84, 232),
    "purple": (136, 36, 168),
    "pink": (255, 158, 206),
    "brown": (104, 56, 20),
    "black": (12, 12, 14),
    "white": (252, 252, 252),
}

#: How captions say that there are so many of a shape.
NUMBERS = {2: "two", 3: "three", 4: "four"}

_HELD_OUT_PAIRS = frozenset(
    {
        ("circle", "purple"),
        ("square", "green"),
        ("ring", "yellow"),
        ("triangle", "orange"),
        ("cross", "brown"),
        ("diamond", "red"),
        ("star", "blue"),
        ("heart", "black"),
        ("moon", "white"),
        ("frame", "pink"),
    }
)
_HELD_OUT_SHAPES = frozenset(
    frozenset(shapes)
    for shapes in (
        ("triangle", "ring"),
        ("square", "moon"),
        ("circle", "heart"),
        ("star", "cross"),
        ("diamond", "frame"),
    )
)
_HELD_OUT_COUNTS = frozenset({(3, "triangle"), (4, "cross"), (2, "star"), (4, "moon")})


def is_held_out_pair(shape: str, color: str) -> bool:
    """Whether no default training picture shows this shape in this colour."""
    return (shape, color) in _HELD_OUT_PAIRS


def is_held_out_shapes(first: str, second: str) -> bool:
    """Whether no default training picture shows these two shapes together, in any order."""
    return frozenset((first, second)) in _HELD_OUT_SHAPES


def is_held_out_count(count: int, shape: str) -> bool:
    """Whether no default training picture shows exactly this many of this shape."""
    return (count, shape) in _HELD_OUT_COUNTS


@cache
def is_held_out_word(word: str) -> bool:
    """Whether no default training picture shows this word; single letters are never held out."""
    return len(word) > 1 and sha256(f"held out: {word}".encode()).digest()[0] % 10 == 0


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that scenes, captions and the oracle of one world depend on.

    Lengths are pixels at scale 1. An object's radius is half the edge of the box that holds it.

    The shorter side of the canvas has `canvas_px`; `aspect` is its width to its height.

    Raises:
        UserError: for a shape, colour or letter that cannot be drawn, a count that captions cannot
            say, or an aspect that does not make whole pixels.
    """

    name: str
    canvas_px: int = 64
    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    radii_px: tuple[float, ...]
    #: Object and letter centres lie on multiples of this.
    placement_step_px: int
    #: Least distance between the boxes of two objects.
    min_gap_px: float = 3.0
    #: Least distance between a box and the edge of the canvas.
    margin_px: float = 1.0
    counts: tuple[int, ...] = (2, 3, 4)
    words: tuple[str, ...]
    #: Edge of one dot of the 5x7 font.
    glyph_scale: int
    aspect: tuple[int, int] = field(default=(1, 1), metadata=LATER)

    def __post_init__(self) -> None:
        width, height = self.aspect
        if min(self.aspect) < 1 or self.canvas_px * max(self.aspect) % min(self.aspect):
            raise UserError(
                f"world {self.name!r}: the aspect {width}:{height} does not make whole pixels of a "
                f"canvas with a shorter side of {self.canvas_px} px; choose one such as 2:1 or 3:2"
            )
        for kind, chosen, known in (
            ("shape", self.shapes, tuple(OUTLINES)),
            ("color", self.colors, tuple(PALETTE)),
            ("count", self.counts, tuple(NUMBERS)),
            ("letter", tuple(sorted(set("".join(self.words)))), tuple(LETTERS)),
        ):
            for name in chosen:
                if name not in known:
                    raise UserError(
                        f"world {self.name!r}: unknown {kind} {name!r}; "
                        f"choose among {', '.join(map(str, known))}"
                    )

    @property
    def canvas_size_px(self) -> tuple[int, int]:
        """Width and height of the canvas."""
        width, height = (self.canvas_px * side // min(self.aspect) for side in self.aspect)
        return width, height

    @cached_property
    def letters(self) -> str:
        """All letters that occur in words, in alphabetical order."""
        return "".join(sorted(set("".join(self.words))))

    @cached_property
    def word_lengths(self) -> tuple[int, ...]:
        """The numbers of letters that words have, in ascending order."""
        return tuple(sorted({len(word) for word in self.words}))

    @property
    def glyph_pitch_px(self) -> int:
        """Distance between the centres of neighbouring letters."""
        return GLYPH_PITCH * self.glyph_scale

    def word_size_px(self, num_letters: int) -> tuple[int, int]:
        """Width and height of a word's box."""
        return (
            (GLYPH_PITCH * num_letters - 1) * self.glyph_scale,
            GLYPH_ROWS * self.glyph_scale,
        )


FULL = World(
    name="full",
    shapes=tuple(OUTLINES),
    colors=tuple(PALETTE),
    radii_px=(8.0, 9.0, 10.0, 11.0),
    placement_step_px=1,
    words=COMMON_WORDS,
    glyph_scale=2,
)

SMALL = World(
    name="small",
    shapes=("circle", "square", "triangle", "cross", "ring"),
    colors=("red", "yellow", "green", "blue", "purple", "white"),
    radii_px=(10.5,),
    placement_step_px=8,
    words=tuple(
        "".join(letters) for length in (1, 2) for letters in product("ACEHLOTX", repeat=length)
    ),
    glyph_scale=4,
)

_WORLDS = {world.name: world for world in (FULL, SMALL)}


def world_by_name(name: str) -> World:
    """Return a preset.

    Raises:
        UserError: when no preset has this name.
    """
    if name not in _WORLDS:
        raise UserError(f"unknown world {name!r}; choose one of {', '.join(_WORLDS)}")
    return _WORLDS[name]
