"""Loss spikes: what counts as one, and which batches are left out after going back.

On the walk of a sample after `step`: the loop asks whether the step stands, and if not it goes on
from the last checkpoint without the batches that led there. The decision is a function of the state
and the step, and `spikes.jsonl` keeps it, so that a continued run makes the same one.
Source: arXiv 2204.02311 (PaLM), section 5.1: back to an earlier checkpoint, other batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rectiflow.base.errors import ConfigError
from rectiflow.base.log import EventLog, read_events

RECORD_FILE = "spikes.jsonl"
#: Below this share of the median a MAD says that the window is short, not that values are equal.
LEAST_RELATIVE_MAD = 0.01


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A step's `figure` (loss or gradient norm) above its `bound`; None where it is no number."""

    figure: str
    value: float
    bound: float | None

    def __str__(self) -> str:
        if self.bound is None:
            return f"the {self.figure} is {self.value}"
        return f"the {self.figure} is {self.value:.4g}, above {self.bound:.4g}"


@dataclass(kw_only=True)
class SpikeMemory:
    """What the rule remembers between steps, and the places in the data that are left out."""

    losses: list[float] = field(default_factory=list[float])
    gradient_norms: list[float] = field(default_factory=list[float])
    skipped: list[int] = field(default_factory=list[int])

    def place_of(self, step: int) -> int:
        """Which batch of the endless stream the step after `step` finished ones takes."""
        place = step
        for left_out in sorted(self.skipped):
            if left_out <= place:
                place += 1
        return place

    def skip(self, places: Iterable[int]) -> None:
        """Leave these out from now on."""
        self.skipped = sorted({*self.skipped, *places})


@dataclass(frozen=True, kw_only=True)
class SpikeGuard:
    """When a step counts as a spike: above median + threshold·MAD of the last `window` steps.

    MAD is the median distance from the median; of normally distributed values, 10 MAD are nearly 7
    standard deviations. Loss and gradient norm (before clipping) are judged each by itself, once
    `window` steps have been made; one that is no number is a spike at any time. After a spike,
    `skip` batches, the last of them the one that showed it, are left out for good. After `limit`
    spikes the run stops. `threshold` 0 turns it off.

    Raises:
        ConfigError: a number out of its range.
    """

    threshold: float = 0.0
    window: int = 200
    skip: int = 1
    limit: int = 10

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < math.inf:
            raise ConfigError(
                f"spikes.threshold is {self.threshold}; give a number of MADs such as 20, or 0 to "
                "turn the guard off"
            )
        for name, least in (("window", 10), ("skip", 1), ("limit", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"spikes.{name} is {value}; it must be at least {least}")

    @property
    def is_on(self) -> bool:
        return self.threshold > 0.0

    def bound(self, values: Sequence[float]) -> float | None:
        """The largest value that is no spike after these; None while there are too few."""
        if len(values) < self.window:
            return None
        middle = median(values)
        mad = median(abs(value - middle) for value in values)
        return middle + self.threshold * max(mad, LEAST_RELATIVE_MAD * abs(middle))

    def judge(self, memory: SpikeMemory, loss: float, gradient_norm: float) -> Spike | None:
        """Whether a step with these figures is a spike; one that is not enters the memory."""
        if not self.is_on:
            return None
        for figure, value, values in (
            ("loss", loss, memory.losses),
            ("gradient norm", gradient_norm, memory.gradient_norms),
        ):
            bound = self.bound(values)
            if not math.isfinite(value):
                return Spike(figure=figure, value=value, bound=None)
            if bound is not None and value > bound:
                return Spike(figure=figure, value=value, bound=bound)
        memory.losses = [*memory.losses, loss][-self.window :]
        memory.gradient_norms = [*memory.gradient_norms, gradient_norm][-self.window :]
        return None

    def places_to_skip(self, place: int, *, from_place: int) -> list[int]:
        """The last `skip` places up to `place`, none before `from_place`, where the data stands."""
        return list(range(max(from_place, place - self.skip + 1), place + 1))


def record_spike(run: Path, spike: Spike, *, step: int, back_to: int, skipped: list[int]) -> None:
    """Append one decision to the run's `spikes.jsonl`, before it is acted upon."""
    with EventLog(run / RECORD_FILE) as log:
        log.write(
            "spike",
            step=step,
            figure=spike.figure,
            value=spike.value,
            bound=spike.bound,
            back_to=back_to,
            skipped=skipped,
        )


def read_spikes(run: Path) -> list[dict[str, Any]]:
    """The run's decisions so far, in order."""
    path = run / RECORD_FILE
    return read_events(path, "spike") if path.exists() else []
