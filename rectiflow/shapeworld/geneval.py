"""GenEval's verdict on a picture's detections (arXiv 2310.11513, `evaluation/evaluate_images.py`).

The same arithmetic as the released script, down to the order of its floating point operations;
what finds the objects is exchangeable.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from rectiflow.shapeworld.captions import Clause, Metadata
from rectiflow.shapeworld.reading import Box

#: Part of the boxes' sizes by which an offset is shortened before it counts as a relation.
_POSITION_THRESHOLD = 0.1
#: Component of the shortened offset, in units of the whole one, from which a relation holds.
_MIN_COMPONENT = 0.5


@runtime_checkable
class Found(Protocol):
    """What the verdict needs to know of one detected object."""

    @property
    def color(self) -> str:
        """Its colour's name."""
        ...

    @property
    def box(self) -> Box:
        """Its box (x0, y0, x1, y1) in pixels."""
        ...


def relations(first: Box, second: Box) -> frozenset[str]:
    """Return the relations that the first box has to the second; a diagonal may have two."""
    corners = np.array([first, second], np.float64).reshape(2, 2, 2)
    center_a, center_b = corners.mean(axis=-2)
    size_a, size_b = np.abs(np.diff(corners, axis=-2))[..., 0, :]
    offset = center_a - center_b
    shortened = np.maximum(np.abs(offset) - _POSITION_THRESHOLD * (size_a + size_b), 0)
    shortened = shortened * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return frozenset()
    # GenEval divides by the length of the whole offset, not of the shortened one.
    dx, dy = shortened / np.linalg.norm(offset)
    holds = {
        "left of": dx < -_MIN_COMPONENT,
        "right of": dx > _MIN_COMPONENT,
        "above": dy < -_MIN_COMPONENT,
        "below": dy > _MIN_COMPONENT,
    }
    return frozenset(name for name, is_so in holds.items() if is_so)


def _clause_failure(
    clause: Clause, found: Sequence[Found], groups: Sequence[Sequence[Found] | None]
) -> str | None:
    """Say why the top `count` objects of a clause's class do not satisfy it, if they do not."""
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" in clause:
        colors = [one.color for one in found]
        if colors.count(clause["color"]) < count:
            return f"expected {clause['color']} {name}>={count}, found {' and '.join(colors)}"
    if "position" in clause:
        relation, place = clause["position"]
        target = groups[int(place)]
        if target is None:
            return f"no target for {name} to be {relation}"
        for one in found:
            for other in target:
                present = relations(one.box, other.box)
                if relation not in present:
                    seen = " and ".join(sorted(present)) or "no relation"
                    return f"expected {name} {relation} target, found {seen}"
    return None


def geneval_failures(found: Mapping[str, Sequence[Found]], metadata: Metadata) -> list[str]:
    """Return why detections do not satisfy a prompt; an empty list is GenEval's "correct".

    Args:
        found: detected objects by class, each list by falling score.
        metadata: the prompt's record; extra objects are punished by `exclude` alone.
    """
    failures: list[str] = []
    groups: list[Sequence[Found] | None] = []
    for clause in metadata["include"]:
        top = list(found.get(clause["class"], ()))[: clause["count"]]
        failure = _clause_failure(clause, top, groups)
        groups.append(None if failure else top)
        if failure:
            failures.append(failure)
    for clause in metadata.get("exclude", ()):
        number = len(found.get(clause["class"], ()))
        if number >= clause["count"]:
            failures.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return failures
