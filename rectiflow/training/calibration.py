"""How fast a recipe trains here: a short timing run on throwaway copies.

A minutes budget becomes a number of steps before training starts, so that the run itself is
deterministic and its learning rate ends at zero on time.
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
from rectiflow.training.validation import validate

_NUM_WARMUP_STEPS = 3


def calibrate(recipe: TrainRecipe, store: Path | str | Feed, seconds: float) -> float:
    """Steps per second of a run of `recipe`, validation included, timed for about `seconds`.

    Checkpoints and sample pictures are not timed.

    Raises:
        UserError: as `train`, for a store that is damaged or does not fit.
    """
    feed = store if isinstance(store, Feed) else open_feed(store, recipe)
    state = TrainState.start(recipe)
    step_s = time_steps(state, feed.batch_at, recipe, seconds)
    if recipe.validate_every and feed.validation:
        started = time.perf_counter()
        validate(state.ema.model, feed.validation[:1], recipe)
        share = sum(map(len, feed.validation)) / len(feed.validation[0])
        num_networks = 1 + recipe.ema.num_averages
        step_s += num_networks * share * (time.perf_counter() - started) / recipe.validate_every
    return 1.0 / step_s


def time_steps(
    state: TrainState, batch_at: Callable[[int], Batch], recipe: TrainRecipe, seconds: float
) -> float:
    """Seconds of one training step with its batch, timed for about `seconds`; moves `state`."""
    durations: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(durations) <= _NUM_WARMUP_STEPS or time.perf_counter() < deadline:
        started = time.perf_counter()
        train_step(state, batch_at(state.step % recipe.max_steps), recipe)
        durations.append(time.perf_counter() - started)
    # The first steps compile kernels; the median forgives what else the machine is doing.
    return statistics.median(durations[_NUM_WARMUP_STEPS:])
