"""Fields of a recipe given as options: `--optimizer.learning-rate 3e-4`, parsed by tyro.

Which component a recipe holds is chosen in Python; options only change values in it. Solver, grid
and guidance alone are told by name, as `rectiflow sample` spells them: `--sampling.solver heun`.
tyro explains a mistake in a box over several lines, of which the first block becomes our one line.
"""

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rectiflow.base.errors import ConfigError
from rectiflow.sampling import (
    Guidance,
    Solver,
    TimeGrid,
    parse_grid,
    parse_guidance,
    parse_solver,
    spell,
)

T = TypeVar("T")

_NAMED: Mapping[Any, Callable[[str], Any]] = {
    Solver: parse_solver,
    TimeGrid: parse_grid,
    Guidance: parse_guidance,
}
_REGISTRY = ConstructorRegistry()
_BORDER = re.compile(r"[│╭╮╰╯├┤|]+")
_RULE = re.compile(r"[─-]{4,}")


def apply_overrides(recipe: T, overrides: Sequence[str], *, prog: str) -> T:
    """The recipe with the options' values in place of its own.

    Raises:
        ConfigError: an option that the recipe does not have, or a value that does not fit.
    """
    kind: Any = tyro.conf.AvoidSubcommands[type(recipe)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(
                kind, default=recipe, args=list(overrides), prog=prog, registry=_REGISTRY
            )
    except SystemExit as error:
        raise ConfigError(_first_block(said.getvalue())) from error


def describe_fields(recipe: object, *, prog: str) -> str:
    """tyro's page about every field of the recipe, with this recipe's values as defaults."""
    kind: Any = tyro.conf.AvoidSubcommands[type(recipe)]
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        tyro.cli(kind, default=recipe, args=["--help"], prog=prog, registry=_REGISTRY)
    return said.getvalue()


@_REGISTRY.primitive_rule
def _by_name(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kind: Any = type_info.type
    if kind not in _NAMED:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda words: _NAMED[kind](words[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [spell(value)],
    )


def _first_block(text: str) -> str:
    """The message of tyro's box without borders, heading and pointers to help, on one line."""
    lines = [_BORDER.sub(" ", line).strip() for line in text.splitlines()]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if _RULE.search(line):
            blocks.append([])
        elif line:
            blocks[-1].append(line)
    message = " ".join(blocks[1] if len(blocks) > 1 else blocks[0])
    hints = re.findall(r"--[\w.-]+", " ".join(" ".join(block) for block in blocks[2:]))
    near = [hint for hint in dict.fromkeys(hints) if hint not in message and hint != "--help"]
    return message + (f"; nearest: {', '.join(near)}" if near else "")
