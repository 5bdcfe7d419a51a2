"""Scores agree with each other: strict implies lenient, lenient is a grade of 1, edits lower it."""

from dataclasses import replace

import pytest

from rectiflow.shapeworld.captions import parse_caption
from rectiflow.shapeworld.reading import Blob, Detection, Reading, ReadWord
from rectiflow.shapeworld.scoring import Verdict, score
from rectiflow.shapeworld.world import FULL

NOTHING = Reading(objects=(), word=None, unknown=())


def found(shape: str, color: str, x: float = 32.0, y: float = 32.0) -> Detection:
    box = (x - 9.0, y - 9.0, x + 9.0, y + 9.0)
    return Detection(shape=shape, color=color, box=box, center_px=(x, y), score=0.99)


def reading(*objects: Detection) -> Reading:
    return Reading(objects=objects, word=None, unknown=())


def written(text: str, color: str = "red") -> Reading:
    box = (10.0, 10.0, 44.0, 24.0)
    word = ReadWord(text=text, color=color, box=box, center_px=(27.0, 17.0), score=0.99)
    return Reading(objects=(), word=word, unknown=())


def blob(likeness: float, color: str = "red") -> Blob:
    return Blob(
        color=color,
        box=(20.0, 20.0, 40.0, 40.0),
        center_px=(30.0, 30.0),
        similarity=dict.fromkeys(FULL.shapes, 0.2) | {"circle": likeness},
    )


def judge(caption: str, read: Reading) -> Verdict:
    return score(FULL, read, parse_caption(FULL, caption))


def test_extra_objects_cost_strict_only() -> None:
    circle, star = found("circle", "red", 12.0), found("star", "blue", 50.0)
    verdict = judge("a photo of a red circle", reading(circle, star))
    assert (verdict.correct, verdict.strict, verdict.graded) == (True, False, 1.0)
    assert verdict.reason == "expected 1 objects in all, found 2"
    verdict = judge("a photo of a red circle", replace(reading(circle), unknown=(blob(0.5),)))
    assert (verdict.correct, verdict.strict) == (True, False)
    verdict = judge("a photo of a red circle", replace(written("CAT"), objects=(circle,)))
    assert (verdict.correct, verdict.strict) == (True, False)
    assert verdict.reason == 'expected no word, found "CAT"'


def test_places_count_for_strict() -> None:
    circle = reading(found("circle", "red", 12.0, 12.0))
    assert judge("a red circle top left", circle).strict
    verdict = judge("a red circle top right", circle)
    assert (verdict.correct, verdict.strict) == (True, False)
    assert verdict.reason == "expected circle top right, found top left"
    both = reading(found("circle", "red", 12.0, 12.0), found("circle", "red", 48.0, 48.0))
    assert judge("two red circles top left and bottom right", both).strict
    assert not judge("two red circles top left and bottom left", both).strict
    # Half a pixel left of the border between left and middle.
    edge = reading(found("circle", "red", 26.0, 32.0))
    assert judge("a red circle left", edge).strict
    assert judge("a red circle center", edge).strict
    assert not judge("a red circle right", edge).strict
    assert judge('the word "CAT" in red bottom', written("CAT")).reason == (
        "expected word bottom, found top"
    )


@pytest.mark.parametrize(
    ("caption", "steps"),
    [
        (
            "a photo of a red circle",
            [
                NOTHING,
                reading(found("star", "blue")),
                reading(found("star", "red")),
                reading(found("circle", "blue")),
                reading(found("circle", "red")),
            ],
        ),
        (
            "a photo of a red circle and a blue star",
            [
                NOTHING,
                reading(found("circle", "red")),
                reading(found("circle", "blue", 12.0), found("star", "red", 50.0)),
                reading(found("circle", "red", 12.0), found("star", "red", 50.0)),
                reading(found("circle", "red", 12.0), found("star", "blue", 50.0)),
            ],
        ),
        (
            "a photo of three circles",
            [
                NOTHING,
                reading(found("circle", "red")),
                reading(*[found("circle", "red")] * 2),
                reading(*[found("circle", "red")] * 3),
            ],
        ),
        (
            "a photo of two circles",
            [
                reading(*[found("circle", "red")] * 6),
                reading(*[found("circle", "red")] * 4),
                reading(*[found("circle", "red")] * 3),
                reading(*[found("circle", "red")] * 2),
            ],
        ),
        (
            "a photo of a circle left of a star",
            [
                NOTHING,
                reading(found("circle", "red")),
                reading(found("circle", "red", 50.0), found("star", "red", 12.0)),
                reading(found("circle", "red", 32.0, 12.0), found("star", "red", 32.0, 50.0)),
                reading(found("circle", "red", 12.0), found("star", "red", 50.0)),
            ],
        ),
        (
            'the word "CAT" in red',
            [
                NOTHING,
                replace(NOTHING, unknown=(blob(0.3, "blue"),)),
                written("DOG", "blue"),
                written("COT", "blue"),
                written("CA?"),
                written("CAT"),
            ],
        ),
    ],
)
def test_grades_rise_step_by_step(caption: str, steps: list[Reading]) -> None:
    verdicts = [judge(caption, step) for step in steps]
    grades = [verdict.graded for verdict in verdicts]
    assert grades == sorted(grades)
    assert len(set(grades)) == len(grades)
    for verdict in verdicts:
        assert 0.0 <= verdict.graded <= 1.0
        assert (verdict.graded == 1.0) == verdict.correct
        assert verdict.correct or not verdict.strict
        assert verdict.strict == (verdict.reason == "")
    assert [verdict.strict for verdict in verdicts] == [False] * (len(steps) - 1) + [True]


def test_blobs_are_worth_their_likeness() -> None:
    grades = [
        judge("a photo of a circle", replace(NOTHING, unknown=(blob(likeness),))).graded
        for likeness in (0.3, 0.5, 0.7, 0.85)
    ]
    assert grades == sorted(set(grades))
    assert grades[0] > 0.0
    assert grades[-1] < 1.0


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (NOTHING, 'expected the word "CAT", found none'),
        (written("CAR"), 'expected the word "CAT", found "CAR"'),
        (written("CAT", "blue"), "expected red letters, found blue"),
    ],
)
def test_words_must_be_exact(read: Reading, reason: str) -> None:
    verdict = judge('the word "CAT" in red', read)
    assert not verdict.correct
    assert verdict.reason == reason


def test_word_color_counts_only_when_asked() -> None:
    assert judge('the word "CAT"', written("CAT", "blue")).strict
    assert not judge('the word "CAT"', NOTHING).graded
