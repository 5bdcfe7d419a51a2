"""Worlds hold what they say, and what is held out is a tenth of each kind in both."""

from itertools import combinations, product

import numpy as np
import pytest

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import UserError
from rectiflow.shapeworld.world import (
    BACKGROUND,
    FULL,
    PALETTE,
    SMALL,
    World,
    is_held_out_count,
    is_held_out_pair,
    is_held_out_shapes,
    is_held_out_word,
    world_by_name,
)


def test_small_is_a_part_of_full() -> None:
    assert set(SMALL.shapes) < set(FULL.shapes)
    assert set(SMALL.colors) < set(FULL.colors)
    assert set(SMALL.letters) < set(FULL.letters)
    assert set(SMALL.counts) <= set(FULL.counts)


def test_presets_by_name(world: World) -> None:
    assert world_by_name(world.name) is world


def test_worlds_survive_json(world: World) -> None:
    assert from_json(World, to_json(world)) == world


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="unknown world 'large'; choose one of full, small"):
        world_by_name("large")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shapes": ("blob",)}, "unknown shape 'blob'; choose among circle"),
        ({"colors": ("mauve",)}, "unknown color 'mauve'; choose among red"),
        ({"counts": (3, 5)}, "unknown count 5; choose among 2, 3, 4"),
        ({"counts": (1,)}, "unknown count 1; choose among 2, 3, 4"),
        ({"words": ("Aé",)}, "unknown letter 'é'; choose among A"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    wrong: dict[str, tuple[str | int, ...]], message: str
) -> None:
    parts = {"shapes": ("circle",), "colors": ("red",), "words": ("A",)} | wrong
    with pytest.raises(UserError, match=message):
        World(name="odd", radii_px=(8.0,), placement_step_px=1, glyph_scale=2, **parts)


def lab(color: tuple[int, int, int]) -> np.ndarray:
    """CIE Lab under D65 of an sRGB colour in 0..255."""
    rgb = np.array(color) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    )
    xyz = to_xyz @ linear / np.array([0.9505, 1.0, 1.0888])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colors_are_far_apart() -> None:
    for first, second in combinations([BACKGROUND, *PALETTE.values()], 2):
        assert np.linalg.norm(lab(first) - lab(second)) >= 31


def test_held_out_shares() -> None:
    pairs = [is_held_out_pair(*pair) for pair in product(FULL.shapes, FULL.colors)]
    assert sum(pairs) == 10
    assert sum(is_held_out_pair(*pair) for pair in product(SMALL.shapes, SMALL.colors)) >= 3
    assert sum(is_held_out_shapes(*two) for two in combinations(FULL.shapes, 2)) in (4, 5)
    assert sum(is_held_out_shapes(*two) for two in combinations(SMALL.shapes, 2)) >= 1
    assert sum(is_held_out_count(*both) for both in product(FULL.counts, FULL.shapes)) >= 3
    assert sum(is_held_out_count(*both) for both in product(SMALL.counts, SMALL.shapes)) >= 2


def test_every_shape_and_color_is_held_out_once() -> None:
    for shape in FULL.shapes:
        assert sum(is_held_out_pair(shape, color) for color in FULL.colors) == 1
    for color in FULL.colors:
        assert sum(is_held_out_pair(shape, color) for shape in FULL.shapes) == 1


def test_shape_pairs_have_no_order() -> None:
    for first, second in product(FULL.shapes, repeat=2):
        assert is_held_out_shapes(first, second) == is_held_out_shapes(second, first)
        assert not is_held_out_shapes(first, first)


def test_a_tenth_of_the_words_is_held_out(world: World) -> None:
    share = sum(map(is_held_out_word, world.words)) / len(world.words)
    assert 0.07 <= share <= 0.13


def test_held_out_letters_are_seen_elsewhere(world: World) -> None:
    seen = [word for word in world.words if not is_held_out_word(word)]
    for place, letter in enumerate_letters([word for word in world.words if word not in seen]):
        assert any(letter in word for word in seen)
        # In the small world even at the same place of a word as long.
        assert world is not SMALL or any(len(w) == 2 and w[place] == letter for w in seen)


def enumerate_letters(words: list[str]) -> set[tuple[int, str]]:
    return {(place, letter) for word in words for place, letter in enumerate(word)}


def test_words_are_distinct_and_short(world: World) -> None:
    assert len(set(world.words)) == len(world.words)
    assert world.word_lengths == ((1, 2) if world is SMALL else (3, 4, 5))
    assert len(world.letters) == (8 if world is SMALL else 26)
