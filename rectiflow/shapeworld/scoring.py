"""Scores of a reading against a prompt: lenient as GenEval, strict, and graded in [0, 1].

*Lenient* is GenEval's verdict (for words: spelled exactly, in the colour if one is asked).
*Strict* also wants nothing else in the picture, and every object where the prompt says.
*Graded* tells how close the reading is to the nearest scene that would pass.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from rectiflow.shapeworld.captions import Metadata, WordRequest, place_of
from rectiflow.shapeworld.geneval import geneval_failures, relations
from rectiflow.shapeworld.reading import Blob, Detection, Reading
from rectiflow.shapeworld.scene import RELATIONS, Point
from rectiflow.shapeworld.world import World

#: What an object is worth for being there at all, for its shape and for its colour, if one is
#: asked; the spelling is a word's shape.
_PRESENCE, _SHAPE, _COLOR = 0.2, 0.5, 0.3
#: Likeness from which an unknown blob begins to count as a shape, and where it would be one.
_LIKENESS = (0.4, 0.86)
#: What a blob that is nearly a shape is worth of a shape.
_ALMOST = 0.8
#: What a relation is worth beside the two objects.
_RELATION = 0.3
#: How far over a place's border an object may be read.
_PLACE_TOLERANCE_PX = 1.0
#: No failure is graded higher.
_BEST_FAILURE = 0.95


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Scores of one picture; `graded` is 1 exactly when `correct`, and `strict` implies it."""

    correct: bool
    strict: bool
    graded: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """One object that a prompt asks for."""

    shape: str
    color: str | None


def _credit(wanted: _Wanted, thing: Detection | Blob) -> float:
    """How much of a wanted object a found one is, in [0, 1]."""
    if isinstance(thing, Detection):
        shape = float(thing.shape == wanted.shape)
    else:
        low, high = _LIKENESS
        likeness = (thing.similarity[wanted.shape] - low) / (high - low)
        shape = _ALMOST * min(max(likeness, 0.0), 1.0)
    got, asked = _PRESENCE + _SHAPE * shape, _PRESENCE + _SHAPE
    if wanted.color is not None:
        got += _COLOR * (thing.color == wanted.color)
        asked += _COLOR
    return got / asked


def _wanted(metadata: Metadata) -> list[_Wanted]:
    return [
        _Wanted(shape=clause["class"], color=clause.get("color"))
        for clause in metadata["include"]
        for _ in range(clause["count"])
    ]


def _grade_objects(reading: Reading, metadata: Metadata) -> float:
    wanted = _wanted(metadata)
    things: list[Detection | Blob] = [*reading.objects, *reading.unknown]
    if not things:
        return 0.0
    credits = np.array([[_credit(one, thing) for thing in things] for one in wanted])
    rows, columns = linear_sum_assignment(credits, maximize=True)
    grade = float(credits[rows, columns].sum()) / len(wanted)
    for clause in metadata.get("exclude", ()):
        number = sum(one.shape == clause["class"] for one in reading.objects)
        grade *= min(1.0, (clause["count"] - 1) / max(number, 1))
    subject = metadata["include"][-1]
    if "position" in subject:
        pair = dict(zip(rows.tolist(), columns.tolist(), strict=True))
        relation = 0.0
        if len(pair) == len(wanted) == 2:
            target_thing, subject_thing = things[pair[0]], things[pair[1]]
            relation = _grade_relation(str(subject["position"][0]), subject_thing, target_thing)
            relation *= float(credits[rows, columns].min())
        grade = (1 - _RELATION) * grade + _RELATION * relation
    return grade


def _grade_relation(relation: str, subject: Detection | Blob, target: Detection | Blob) -> float:
    """1 when the relation holds, else how far the direction is the right one, below 1."""
    if relation in relations(subject.box, target.box):
        return 1.0
    offset = np.subtract(subject.center_px, target.center_px)
    along = float(offset @ np.array(RELATIONS[relation])) / max(float(np.linalg.norm(offset)), 1.0)
    return 0.5 * (1.0 + along) * _ALMOST


def _edits(first: str, second: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first, start=1):
        previous, row[0] = row[0], place
        for column, other in enumerate(second, start=1):
            previous, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, previous + (letter != other)),
            )
    return row[-1]


def _grade_word(reading: Reading, request: WordRequest) -> float:
    asked = request["text"]
    color = request.get("color")
    if reading.word is not None:
        read = reading.word.text
        spelling = 1.0 - _edits(read, asked) / max(len(read), len(asked))
        got = _PRESENCE + _SHAPE * spelling
        has_color = reading.word.color == color
    elif reading.unknown:
        # Something that no shape is like may be on its way to a letter.
        got = 0.5 * _PRESENCE
        has_color = any(blob.color == color for blob in reading.unknown)
    else:
        return 0.0
    if color is None:
        return got / (_PRESENCE + _SHAPE)
    return (got + _COLOR * has_color) / (_PRESENCE + _SHAPE + _COLOR)


def _word_failures(reading: Reading, request: WordRequest) -> list[str]:
    if reading.word is None:
        return [f'expected the word "{request["text"]}", found none']
    failures: list[str] = []
    if reading.word.text != request["text"]:
        failures.append(f'expected the word "{request["text"]}", found "{reading.word.text}"')
    if reading.word.color != request.get("color", reading.word.color):
        failures.append(f"expected {request.get('color')} letters, found {reading.word.color}")
    return failures


def _excess(world: World, reading: Reading, metadata: Metadata) -> list[str]:
    """Say what a correct picture shows too much, or elsewhere than the prompt says."""
    failures: list[str] = []
    if reading.unknown:
        failures.append(f"{len(reading.unknown)} unknown blobs")
    number = sum(clause["count"] for clause in metadata["include"])
    if len(reading.objects) != number:
        failures.append(f"expected {number} objects in all, found {len(reading.objects)}")
    word = metadata.get("word")
    if word is None and reading.word is not None:
        failures.append(f'expected no word, found "{reading.word.text}"')
    if word is not None and reading.word is not None and "place" in word:
        failures += _misplaced(world, "word", [reading.word.center_px], [word["place"]])
    for clause in metadata["include"]:
        if "places" in clause:
            name = clause["class"]
            centers = [one.center_px for one in reading.objects if one.shape == name]
            failures += _misplaced(world, name, centers, clause["places"])
    return failures


def _misplaced(world: World, name: str, centers: list[Point], places: list[str]) -> list[str]:
    """Say whether centres cannot be paired with the places where they should be."""
    near = [
        {
            place_of(world, (x + dx, y + dy))
            for dx in (-_PLACE_TOLERANCE_PX, _PLACE_TOLERANCE_PX)
            for dy in (-_PLACE_TOLERANCE_PX, _PLACE_TOLERANCE_PX)
        }
        for x, y in centers
    ]
    fits = np.array([[place in those for those in near] for place in places], np.float64)
    paired = fits[linear_sum_assignment(fits, maximize=True)].sum() if near else 0
    if paired == len(places):
        return []
    found = ", ".join(place_of(world, center) for center in centers)
    return [f"expected {name} {' and '.join(places)}, found {found or 'none'}"]


def score(world: World, reading: Reading, metadata: Metadata) -> Verdict:
    """Judge what the oracle read in a picture by what its prompt asked for."""
    word = metadata.get("word")
    if word is not None:
        failures = _word_failures(reading, word)
        grade = _grade_word(reading, word)
    else:
        found: defaultdict[str, list[Detection]] = defaultdict(list)
        for one in reading.objects:
            found[one.shape].append(one)
        failures = geneval_failures(found, metadata)
        grade = _grade_objects(reading, metadata)
    excess = _excess(world, reading, metadata)
    return Verdict(
        correct=not failures,
        strict=not failures and not excess,
        graded=min(grade, _BEST_FAILURE) if failures else 1.0,
        reason="; ".join([*failures, *excess]),
    )
