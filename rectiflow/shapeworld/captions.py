"""Captions and GenEval metadata of scenes, and the way back from a caption to metadata.

*terse* follows GenEval's templates (arXiv 2310.11513); *full* names all objects with colours and
places. Metadata is GenEval's JSON, with `word` added for typography and `places` where a caption
says where its objects are.
"""

import re
from typing import NotRequired, TypedDict

from rectiflow.base.errors import UserError
from rectiflow.base.seeds import numpy_generator
from rectiflow.shapeworld.scene import RELATIONS, Item, Point, Scene, relation_between
from rectiflow.shapeworld.shapes import OUTLINES
from rectiflow.shapeworld.world import NUMBERS, PALETTE, World

#: The middle band ends this part of the canvas before and after its middle, between two pixels.
_HALF_MIDDLE = 5.5 / 64
_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")
#: Where a picture's objects can be, in reading order.
PLACES = tuple(f"{row} {column}".strip() or "center" for row in _ROWS for column in _COLUMNS)

_PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in OUTLINES}


# A clause's keys are GenEval's, and `class` is no Python name.
Clause = TypedDict(
    "Clause",
    {
        "class": str,
        "count": int,
        "color": NotRequired[str],
        "position": NotRequired[list[str | int]],
        "places": NotRequired[list[str]],
    },
)


class WordRequest(TypedDict):
    """The word that a prompt asks for."""

    text: str
    color: NotRequired[str]
    place: NotRequired[str]


class Metadata(TypedDict):
    """What a prompt asks for: GenEval's record, with the word for typography."""

    tag: str
    include: list[Clause]
    exclude: NotRequired[list[Clause]]
    word: NotRequired[WordRequest]
    prompt: str


def place_of(world: World, center_px: Point) -> str:
    """Name the place of a point, one of `PLACES`."""
    shares = (at / side - 0.5 for at, side in zip(center_px, world.canvas_size_px, strict=True))
    column, row = (
        0 if share < -_HALF_MIDDLE else 2 if share > _HALF_MIDDLE else 1 for share in shares
    )
    return PLACES[3 * row + column]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _listed(phrases: list[str]) -> str:
    """Join by commas and a last "and"."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)


def _colored(item: Item) -> str:
    return f"{item.color} {item.shape}"


def _with_place(world: World, item: Item) -> str:
    return f"{_article(_colored(item))} {place_of(world, item.center_px)}"


def _relation(scene: Scene) -> str:
    return relation_between(scene.items[0].center_px, scene.items[1].center_px)


def _terse(scene: Scene, *, with_word_color: bool) -> str:
    if scene.word is not None:
        color = f" in {scene.word.color}" if with_word_color else ""
        return f'the word "{scene.word.text}"{color}'
    first, last = scene.items[0], scene.items[-1]
    match scene.task:
        case "single_object":
            what = _article(first.shape)
        case "two_object":
            what = f"{_article(first.shape)} and {_article(last.shape)}"
        case "counting":
            what = f"{NUMBERS[len(scene.items)]} {_PLURALS[first.shape]}"
        case "colors":
            what = _article(_colored(first))
        case "position":
            what = f"{_article(first.shape)} {_relation(scene)} {_article(last.shape)}"
        case _:
            what = f"{_article(_colored(first))} and {_article(_colored(last))}"
    return f"a photo of {what}"


def _full(world: World, scene: Scene) -> str:
    if scene.word is not None:
        where = place_of(world, scene.word.center_px)
        return f'the word "{scene.word.text}" in {scene.word.color} {where}'
    first, last = scene.items[0], scene.items[-1]
    match scene.task:
        case "counting":
            places = sorted(
                (place_of(world, item.center_px) for item in scene.items), key=PLACES.index
            )
            number = NUMBERS[len(scene.items)]
            return f"{number} {first.color} {_PLURALS[first.shape]} {_listed(places)}"
        case "position":
            return f"{_article(_colored(first))} {_relation(scene)} {_article(_colored(last))}"
        case _:
            return _listed([_with_place(world, item) for item in scene.items])


def captions(world: World, scene: Scene, *, seed: int, index: int) -> dict[str, str]:
    """Return the captions {"terse", "full"} of a scene.

    Seed and index decide what a terse caption leaves out at random: half of the word captions do
    not say the colour.
    """
    with_color = True
    if scene.word is not None:
        rng = numpy_generator(seed, "shapeworld", world.name, "captions", index)
        with_color = bool(rng.integers(2))
    return {"terse": _terse(scene, with_word_color=with_color), "full": _full(world, scene)}


def prompt_metadata(world: World, scene: Scene, *, with_word_color: bool = True) -> Metadata:
    """Return GenEval's record for a scene's terse caption, which is its prompt."""
    return parse_caption(world, _terse(scene, with_word_color=with_word_color))


_ANY_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_SINGULARS = {plural: shape for shape, plural in _PLURALS.items()}
_COUNTS = {"a": 1, "an": 1} | {name: count for count, name in NUMBERS.items()}
_GROUP = (
    rf"(?P<count>{'|'.join(_COUNTS)}) (?:(?P<color>{'|'.join(PALETTE)}) )?"
    rf"(?P<noun>{'|'.join([*_SINGULARS, *_PLURALS])})"
    rf"(?P<places>(?:(?:,| and)? (?:{_ANY_PLACE})(?! of))*)"
)
_LINK = rf" (?P<link>and|{'|'.join(RELATIONS)}) "
_SENTENCE = re.compile(
    rf"(?:a photo of )?(?P<first>{re.sub(r'[?]P<[a-z]+>', '?:', _GROUP)})"
    rf"(?:{_LINK}(?P<second>{re.sub(r'[?]P<[a-z]+>', '?:', _GROUP)}))?"
)
_WRITING = re.compile(
    rf'the word "(?P<text>[A-Z]+)"'
    rf"(?: in (?P<color>{'|'.join(PALETTE)}))?(?: (?P<place>{_ANY_PLACE}))?"
)


def _clause(phrase: str) -> Clause:
    group = re.fullmatch(_GROUP, phrase)
    assert group is not None, "the sentence matched, so its groups do"
    clause: Clause = {
        "class": _SINGULARS.get(group["noun"], group["noun"]),
        "count": _COUNTS[group["count"]],
    }
    if group["color"]:
        clause["color"] = group["color"]
    if group["places"]:
        clause["places"] = re.findall(_ANY_PLACE, group["places"])
    return clause


def _writing(match: re.Match[str], prompt: str) -> Metadata:
    word: WordRequest = {"text": match["text"]}
    if match["color"]:
        word["color"] = match["color"]
    if match["place"]:
        word["place"] = match["place"]
    return {"tag": "typography", "include": [], "word": word, "prompt": prompt}


def _task_of(clauses: list[Clause], link: str | None) -> str:
    if link in RELATIONS:
        return "position"
    if link is not None:
        return "color_attr" if all("color" in clause for clause in clauses) else "two_object"
    if clauses[0]["count"] > 1:
        return "counting"
    return "colors" if "color" in clauses[0] else "single_object"


def parse_caption(world: World, caption: str) -> Metadata:
    """Read a terse or full caption back into metadata; the inverse of `captions`.

    Raises:
        UserError: when the caption is not one of the world's sentences.
    """
    writing = _WRITING.fullmatch(caption)
    if writing is not None and set(writing["text"]) <= set(world.letters):
        return _writing(writing, caption)
    sentence = _SENTENCE.fullmatch(caption)
    clauses = (
        [_clause(sentence[part]) for part in ("first", "second") if sentence[part]]
        if (sentence)
        else []
    )
    if not sentence or not all(
        clause["class"] in world.shapes and clause.get("color", world.colors[0]) in world.colors
        for clause in clauses
    ):
        raise UserError(
            f"the {world.name} world has no sentence {caption!r}; it knows for example "
            f"'a photo of a red {world.shapes[0]}' with the shapes {', '.join(world.shapes)} and "
            f"the colors {', '.join(world.colors)}"
        )
    metadata: Metadata = {
        "tag": _task_of(clauses, sentence["link"]),
        "include": clauses,
        "prompt": caption,
    }
    if metadata["tag"] == "position":
        # GenEval puts the target first, so that the subject can refer to it by its place.
        subject, target = clauses
        subject["position"] = [sentence["link"], 0]
        metadata["include"] = [target, subject]
    if metadata["tag"] == "counting":
        metadata["exclude"] = [{"class": clauses[0]["class"], "count": clauses[0]["count"] + 1}]
    return metadata
