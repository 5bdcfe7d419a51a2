"""Option types and a parser whose mistakes end as one line instead of a page of usage."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from rectiflow.base.errors import UserError

# What ArgumentParser.add_subparsers returns; argparse has no public name for it.
Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"  # pyright: ignore[reportPrivateUsage]

MAX_SEED = 2**63 - 1


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`, and takes options only in full."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Ends parsing; called by argparse for whatever it cannot parse."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def refuse(self, argument: str) -> NoReturn:
        """Ends parsing at an argument that no option takes."""
        names = ", ".join(self.option_names())
        raise UserError(f"{self.prog} does not know {argument!r}; its options: {names}")

    def option_names(self) -> list[str]:
        """The options that the parser takes, each in its longest spelling."""
        return [
            max(action.option_strings, key=len)
            for action in self._actions
            if action.option_strings and action.help != argparse.SUPPRESS
        ]


def add_verb(
    verbs: "Verbs",
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    usage: str,
    summary: str,
    details: str = "",
    takes_overrides: bool = False,
    add_help: bool = True,
) -> Parser:
    """A verb's parser; `run` gets the parsed options and may return an exit code; `usage` is the
    promised spelling.

    With `takes_overrides` arguments that no option took arrive as `options.overrides`; without,
    they are refused.
    """
    parser = verbs.add_parser(
        name,
        usage=usage,
        help=summary,
        description=f"{summary}\n\n{details}".strip(),
        add_help=add_help,
    )
    parser.set_defaults(run=run, parser=parser, takes_overrides=takes_overrides)
    return parser


def whole_number(at_least: int, at_most: int | None = None) -> Callable[[str], int]:
    """An option type: a whole number in a range, both ends included."""
    limits = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if value < at_least or (at_most is not None and value > at_most):
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}, got {text!r}")
        return value

    return parse


def positive_number(text: str) -> float:
    """An option type: a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def add_shard_over(parser: argparse.ArgumentParser) -> None:
    """`--shard-over N`, the same in every verb that trains."""
    parser.add_argument(
        "--shard-over",
        type=whole_number(1),
        metavar="N",
        help="under torchrun: processes that share one copy of the state (default: all)",
    )


def add_wandb(parser: argparse.ArgumentParser) -> None:
    """`--wandb PROJECT`, the same in every verb that trains."""
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="also send the figures to Weights & Biases"
    )


def add_deterministic(parser: argparse.ArgumentParser) -> None:
    """`--deterministic`, the same in every verb that may use a GPU; the command line acts on it."""
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU, only kernels that give the same bits each time; they may be slower",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """`--seed S`, the same in every verb that draws random numbers."""
    parser.add_argument(
        "--seed",
        type=whole_number(0, MAX_SEED),
        default=0,
        metavar="S",
        help="seed of every random choice (default: 0)",
    )
