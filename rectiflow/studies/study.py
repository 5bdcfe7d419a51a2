"""What a study is: a grid of cells, a way to run one, and what their numbers say together.

A study is a frozen dataclass of its own sizes, so that its JSON tells one grid from another. The
engine (`studies.engine`) runs the cells, each once, in any order and in any number of processes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from rectiflow.base.errors import ConfigError
from rectiflow.studies.bench import Bench
from rectiflow.training.recipe import TrainRecipe

Scale = Literal["smoke", "cpu", "gpu"]
#: Seconds, for tests; two processor cores; an hour of one large GPU.
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "gpu")

Factor = str | int | float | bool
#: One measurement: flat names to numbers, texts or lists of numbers.
Row = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid.

    `name` is also its folder's. `factors` are what it differs in, columns of every row that it
    gives. `recipe` is what it trains; None where it trains nothing.
    """

    name: str
    factors: Mapping[str, Factor]
    recipe: TrainRecipe | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"cell name {self.name!r} is no folder's name; use letters, digits and . _ + -"
            )


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture of the report: file name with its ending, one line about it, and its bytes."""

    file: str
    caption: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report; cells are texts, ready to print."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the numbers of a finished grid say.

    `setting` tells in a paragraph what was done; `verdict` answers the study's question.
    """

    setting: str
    verdict: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = field(default=())


class Study(ABC):
    """A question about recipes that a grid of runs answers; subclasses are frozen dataclasses."""

    #: How the command line calls it.
    name: ClassVar[str]
    #: What stands at the top of its report, with a question mark.
    question: ClassVar[str]
    #: What of the paper it reproduces.
    source: ClassVar[str]

    @abstractmethod
    def cells(self) -> tuple[Cell, ...]:
        """The grid, in the order in which it is run."""

    def second_round(self, rows: Sequence[Row]) -> tuple[Cell, ...]:
        """Cells that are run after all of `cells`, chosen by what those have shown."""
        return ()

    @abstractmethod
    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        """Everything that is measured in one cell; what it keeps lies in `folder`.

        Called again after an interruption, it goes on.

        Raises:
            DivergedError: the cell's training has no finite loss any more.
        """

    @abstractmethod
    def report(self, rows: Sequence[Row]) -> Report:
        """Tables, plots and verdict of all cells' rows.

        Rows carry "cell" and the cell's factors. A diverged cell has a row without measurements
        whose "diverged" is True (False in all others); mostly it is its only one.
        """
