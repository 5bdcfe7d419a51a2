"""GenEval's verdict, checked on boxes worked out by hand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rectiflow.shapeworld.geneval import geneval_failures, relations
from rectiflow.shapeworld.reading import Box


@dataclass(frozen=True)
class Thing:
    color: str
    box: Box


def square(x: float, y: float, edge: float = 20.0) -> Box:
    return (x - edge / 2, y - edge / 2, x + edge / 2, y + edge / 2)


def thing(color: str, x: float = 0.0, y: float = 0.0, edge: float = 20.0) -> Thing:
    return Thing(color=color, box=square(x, y, edge))


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-30.0, 0.0), {"left of"}),
        ((30.0, 0.0), {"right of"}),
        ((0.0, -30.0), {"above"}),
        ((0.0, 30.0), {"below"}),
        # Far diagonals keep components near 0.707: two relations.
        ((100.0, 100.0), {"right of", "below"}),
        # Near ones lose 4 px of 10: 6 / 14.14 = 0.42 is no relation.
        ((10.0, 10.0), set()),
        # 4 px are taken off: what is left is 0, then 0.0005, then 4 of 8 (not more than a half).
        ((4.0, 0.0), set()),
        ((4.0005, 0.0), set()),
        ((8.0, 0.0), set()),
        ((8.01, 0.0), {"right of"}),
        ((0.0, 0.0), set()),
    ],
)
def test_relations_of_two_squares_of_20(offset: tuple[float, float], expected: set[str]) -> None:
    assert relations(square(*offset), square(0.0, 0.0)) == expected


def test_divides_by_the_whole_offset() -> None:
    # Shortened to (6, 1): divided by its own length "right of" would hold at 0.99.
    assert relations(square(10.0, 13.0, 45.0), square(0.0, 0.0, 45.0)) == frozenset()
    assert 1.0 / np.hypot(1.0, 4.0) < 0.5 < 4.0 / np.hypot(1.0, 4.0)


def test_relations_mirror() -> None:
    rng = np.random.default_rng(0)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for _ in range(300):
        a = square(*rng.uniform(0, 64, 2), edge=rng.uniform(1, 30))
        b = square(*rng.uniform(0, 64, 2), edge=rng.uniform(1, 30))
        assert {opposite[name] for name in relations(a, b)} == relations(b, a)


RED_RING: Any = {
    "tag": "",
    "prompt": "",
    "include": [{"class": "ring", "count": 1, "color": "red"}],
}


def test_color_is_asked_of_the_top_boxes_only() -> None:
    assert not geneval_failures({"ring": [thing("red"), thing("blue")]}, RED_RING)
    failures = geneval_failures({"ring": [thing("blue"), thing("red")]}, RED_RING)
    assert failures == ["expected red ring>=1, found blue"]
    assert geneval_failures({}, RED_RING) == ["expected ring>=1, found 0"]


def test_counting_excludes_one_more() -> None:
    record: Any = {
        "tag": "counting",
        "prompt": "",
        "include": [{"class": "ring", "count": 2}],
        "exclude": [{"class": "ring", "count": 3}],
    }
    rings = [thing("red")] * 4
    assert geneval_failures({"ring": rings[:1]}, record) == ["expected ring>=2, found 1"]
    assert not geneval_failures({"ring": rings[:2], "cross": rings}, record)
    assert geneval_failures({"ring": rings[:3]}, record) == ["expected ring<3, found 3"]
    assert geneval_failures({"ring": rings}, record) == ["expected ring<3, found 4"]


def test_position_needs_its_target() -> None:
    record: Any = {
        "tag": "position",
        "prompt": "",
        "include": [
            {"class": "ring", "count": 1},
            {"class": "cross", "count": 1, "position": ["left of", 0]},
        ],
    }
    left, right = thing("red", 0.0), thing("red", 40.0)
    assert not geneval_failures({"cross": [left], "ring": [right]}, record)
    assert geneval_failures({"cross": [right], "ring": [left]}, record) == [
        "expected cross left of target, found right of"
    ]
    assert geneval_failures({"cross": [left], "ring": [left]}, record) == [
        "expected cross left of target, found no relation"
    ]
    assert geneval_failures({"cross": [left]}, record) == [
        "expected ring>=1, found 0",
        "no target for cross to be left of",
    ]
