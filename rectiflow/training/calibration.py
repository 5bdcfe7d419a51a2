"""How fast a recipe trains here: a short timing run on throwaway copies.

A minutes budget becomes a number of steps, so that the run itself is deterministic and its
learning rate ends at zero on time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rectiflow.data.records import Batch
from rectiflow.training.feed import Feed, open_feed
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step

_NUM_WARMUP_STEPS = 3
#: Steps that take so long are not warmed up for: what comes first no longer shows.
_WARM_AFTER_S = 30.0


def calibrate(recipe: TrainRecipe, store: Path | str | Feed, seconds: float) -> float:
    """Steps per second of a run of `recipe`, timed for about `seconds`.

    Validation, checkpoints and sample pictures are not timed.

    Raises:
        UserError: as `train`, for a store that is damaged or does not fit.
    """
    feed = store if isinstance(store, Feed) else open_feed(store, recipe)
    return 1.0 / time_steps(TrainState.start(recipe), feed.batch_at, recipe, seconds)


def time_steps(
    state: TrainState, batch_at: Callable[[int], Batch], recipe: TrainRecipe, seconds: float
) -> float:
    """Seconds of one training step with its batch, timed for about `seconds`; moves `state`."""
    durations: list[float] = []
    begun = time.perf_counter()

    def is_enough() -> bool:
        passed_s = time.perf_counter() - begun
        is_warm = len(durations) > _NUM_WARMUP_STEPS or (durations and passed_s > _WARM_AFTER_S)
        return bool(is_warm) and passed_s >= seconds

    while not is_enough():
        started = time.perf_counter()
        train_step(state, batch_at(state.step % recipe.max_steps), recipe)
        durations.append(time.perf_counter() - started)
    # The first steps compile kernels; the median forgives what else the machine is doing.
    return statistics.median(durations[_NUM_WARMUP_STEPS:] or durations[-1:])
