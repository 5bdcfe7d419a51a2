"""Trains the demo's network under one schedule for some seconds of one thread; prints a JSON row.

rectiflow shapeworld draw --count 30000 --out images && rectiflow encode images --out store
OMP_NUM_THREADS=1 python schedules.py store decay-0.4 90 --seed 0 >> rows.jsonl

Rate and batch follow the share of the processor seconds that are spent, so that every schedule has
the same time and comes to its end in it.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rectiflow.recipes.small import demo
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import open_feed
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step
from rectiflow.training.validation import validate

WARMUP_STEPS = 100
#: Batches of "growing", for a third of the time each; the others' is the middle one.
SIZES = (8, 16, 32)


@dataclass
class Clocked:
    """A schedule whose place is the share of the time that is spent."""

    name: str
    spent: float = 0.0

    def factor(self, step: int, _max_steps: int) -> float:
        """The factor on the peak rate."""
        return min(1.0, (step + 1) / WARMUP_STEPS) * self._decay()

    def _decay(self) -> float:
        match self.name.split("-"):
            case ["constant"]:
                return 1.0
            case ["cosine"]:
                return 0.5 + 0.5 * math.cos(math.pi * self.spent)
            case ["decay", share]:
                return min(1.0, (1.0 - self.spent) / float(share))
            case ["growing"]:
                return min(1.0, (1.0 - self.spent) / 0.4)
            case _:
                raise SystemExit(f"no schedule {self.name!r}")

    def batch_size(self) -> int:
        """Samples of the next step."""
        place = min(int(3 * self.spent), 2)
        return SIZES[place] if self.name == "growing" else SIZES[1]


def main() -> None:
    """Train, validate at the end, and print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("schedule")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    schedule: Any = Clocked(chosen.schedule)
    recipe = replace(
        demo(),
        seed=chosen.seed,
        schedule=schedule,
        ema=EmaConfig(decay=0.99),
        num_validation=256,
    )
    feeds = {size: open_feed(chosen.store, replace(recipe, batch_size=size)) for size in SIZES}
    state, spent_s, num_pictures = TrainState.start(recipe), 0.0, 0
    while spent_s < chosen.seconds:
        schedule.spent = min(spent_s / chosen.seconds, 0.999)
        size = schedule.batch_size()
        started = time.process_time()
        # The next samples that no step has seen, in the order of that size of batch.
        train_step(state, feeds[size].batch_at(num_pictures // size), recipe)
        spent_s += time.process_time() - started
        num_pictures += size
    measured = validate(state.ema.model, feeds[SIZES[1]].validation, recipe)
    row = {
        "schedule": chosen.schedule,
        "seed": chosen.seed,
        "steps": state.step,
        "pictures": num_pictures,
        "held_out_loss": round(measured.loss, 4),
        "by_time": [round(loss, 4) for loss in measured.per_level],
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
