"""Solvers, grids and guidances by name, as the command line spells them.

`heun`, `dormand-prince:tolerance=1e-4`, `skip-layers:layers=7,8,9,strength=2`. A guidance may stand
around another, from the inside out: `zero-star+rescale:amount=0.5+interval:low=0.2,high=0.9`.
A text may hold commas, and a plus that no guidance's name follows: `auto:weaker=runs/a+b`.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from rectiflow.base.errors import ConfigError
from rectiflow.sampling.adaptive import DormandPrince
from rectiflow.sampling.ancestral import Ancestral
from rectiflow.sampling.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    IntervalGuidance,
    NoGuidance,
    RescaledGuidance,
)
from rectiflow.sampling.multistep import DPMSolverPP2M
from rectiflow.sampling.projected_guidance import AdaptiveProjectedGuidance, CFGZeroStar
from rectiflow.sampling.schedule import (
    DynamicShiftGrid,
    LinearGrid,
    ReleasedGrid,
    TimeGrid,
    TrainingTimesGrid,
)
from rectiflow.sampling.solvers import RK4, Euler, Heun, Midpoint, Solver
from rectiflow.sampling.weak_guidance import (
    AutoGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)

T = TypeVar("T")

SOLVERS: dict[str, type[Solver]] = {
    "euler": Euler,
    "heun": Heun,
    "midpoint": Midpoint,
    "rk4": RK4,
    "dpm++2m": DPMSolverPP2M,
    "dormand-prince": DormandPrince,
    "ancestral": Ancestral,
}
GRIDS: dict[str, type[TimeGrid]] = {
    "linear": LinearGrid,
    "training-times": TrainingTimesGrid,
    "released": ReleasedGrid,
    "dynamic": DynamicShiftGrid,
}
GUIDANCES: dict[str, type[Guidance]] = {
    "none": NoGuidance,
    "cfg": ClassifierFreeGuidance,
    "zero-star": CFGZeroStar,
    "apg": AdaptiveProjectedGuidance,
    "auto": AutoGuidance,
    "skip-layers": SkipLayerGuidance,
    "perturb-attention": PerturbedAttentionGuidance,
    "interval": IntervalGuidance,
    "rescale": RescaledGuidance,
}
#: The field of a guidance that stands around another.
INNER = "inner"
_AROUND = re.compile(rf"\+(?=(?:{'|'.join(map(re.escape, GUIDANCES))})(?:[:+]|$))")


def parse_solver(text: str) -> Solver:
    """A solver by name.

    Raises:
        ConfigError: there is none such, or it has no such value; the text lists what there is.
    """
    return _parse(text, SOLVERS, "solver")


def parse_grid(text: str) -> TimeGrid:
    """A time grid by name; raises as `parse_solver`."""
    return _parse(text, GRIDS, "grid")


def parse_guidance(text: str) -> Guidance:
    """A guidance by name, or several around each other; raises as `parse_solver`."""
    first, *around = _AROUND.split(text)
    guidance = _parse(first, GUIDANCES, "guidance")
    for part in around:
        outer = _parse(part, GUIDANCES, "guidance")
        if INNER not in {field.name for field in fields(outer)}:  # pyright: ignore[reportArgumentType]
            wrappers = [name for name in GUIDANCES if INNER in _hints(GUIDANCES[name])]
            raise ConfigError(
                f"{part!r} cannot stand around another guidance; {' and '.join(wrappers)} can"
            )
        guidance = replace(outer, inner=guidance)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return guidance


def spell(value: Solver | TimeGrid | Guidance) -> str:
    """The name that parses to `value`, with what differs from its defaults.

    Except where a text in it goes on like another value or guidance: ",weaker=", "+cfg".
    """
    names = {kind: name for name, kind in (SOLVERS | GRIDS | GUIDANCES).items()}
    inner, parts = "", list[str]()
    for field in fields(value):  # pyright: ignore[reportArgumentType]
        found = getattr(value, field.name)
        if field.name == INNER:
            inner = "" if found == ClassifierFreeGuidance() else f"{spell(found)}+"
        elif found != field.default:
            shown = ",".join(map(str, found)) if isinstance(found, tuple) else str(found)
            parts.append(f"{field.name}={shown}")
    return inner + names[type(value)] + (":" + ",".join(parts) if parts else "")


def _parse(text: str, kinds: Mapping[str, type[T]], what: str) -> T:
    name, _, rest = text.partition(":")
    if name not in kinds:
        raise ConfigError(f"there is no {what} {name!r}; there are {', '.join(kinds)}")
    kind = kinds[name]
    hints = _hints(kind)
    hints.pop(INNER, None)
    given: dict[str, list[str]] = {}
    for piece in rest.split(",") if rest else []:
        key, is_new, value = piece.partition("=")
        last = next(reversed(given), "")
        if is_new and (key in hints or hints.get(last) is not str):
            given[key] = [value]
        elif given:
            # A further item of the last value, as of layers=7,8,9; or of a text with commas.
            given[last].append(piece)
        else:
            raise ConfigError(f"{what} {text!r}: {piece!r} is no key=value")
    for key in given:
        if key not in hints:
            allowed = ", ".join(hints) or "nothing"
            raise ConfigError(f"{what} {name} has no {key!r}; it takes {allowed}")
    needed = [
        field.name
        for field in fields(kind)  # pyright: ignore[reportArgumentType]
        if field.name in hints and field.name not in given and _has_no_default(field)
    ]
    if needed:
        raise ConfigError(f"{what} {name} needs {needed[0]}: {name}:{needed[0]}=…")
    return kind(**{key: _value(hints[key], given[key], f"{name}:{key}") for key in given})


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _has_no_default(field: Any) -> bool:
    return field.default is field.default_factory


def _value(hint: Any, texts: list[str], where: str) -> Any:
    if hint is str:
        return ",".join(texts)
    is_tuple = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if is_tuple else hint
    words = {int: "a whole number", float: "a number"}
    try:
        values = tuple(kind(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"{where}={','.join(texts)} is not {words[kind]}") from error
    if not is_tuple and len(values) != 1:
        raise ConfigError(f"{where}={','.join(texts)} must be {words[kind]}, not a list")
    return values if is_tuple else values[0]
