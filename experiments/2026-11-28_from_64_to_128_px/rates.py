"""Goes on from `tiny` at 128 px with one optimizer, for some seconds of one thread; a JSON row.

OMP_NUM_THREADS=1 python rates.py store muon 0.25 200 >> rates.jsonl

`store` as in README.md. The rate is a factor on that of a first training, and does not decay.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from rectiflow.recipes.highres import highres
from rectiflow.recipes.small import RATE_TIMES_WIDTH
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import open_feed
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step
from rectiflow.training.validation import validate

ENDLESS = 10**9
NUM_LOOKS = 4


def main() -> None:
    """Train, look at the held-out loss on the way, and print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("optimizer", choices=("adamw", "muon"))
    parser.add_argument("factor", type=float)
    parser.add_argument("seconds", type=float)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    plain = highres("tiny")
    rate = chosen.factor * RATE_TIMES_WIDTH / plain.backbone.hidden_dim
    optimizer = AdamW(learning_rate=rate, eps=1e-15)
    if chosen.optimizer == "muon":
        optimizer = Muon(
            learning_rate=rate,
            num_newton_schulz_steps=3,
            orthogonalize_convolutions=True,
            rest=optimizer,
        )
    recipe = replace(
        plain,
        optimizer=optimizer,
        encoder_dropout=0.1,
        pooled_dropout=0.5,
        stratified_times=True,
        max_steps=ENDLESS,
        ema=EmaConfig(decay=0.99),
        num_validation=96,
    )
    feed, state = (
        open_feed(chosen.store, recipe),
        TrainState.start(recipe, read_first_weights("tiny")),
    )
    spent_s, curve, by_time = 0.0, [], list[float]()
    for look in range(1, NUM_LOOKS + 1):
        while spent_s < chosen.seconds * look / NUM_LOOKS:
            started = time.process_time()
            train_step(state, feed.batch_at(state.step), recipe)
            spent_s += time.process_time() - started
        measured = validate(state.ema.model, feed.validation, recipe)
        curve.append([round(spent_s, 1), state.step, round(measured.loss, 4)])
        by_time = [round(loss, 4) for loss in measured.per_level]
    row = {
        "optimizer": chosen.optimizer,
        "factor": chosen.factor,
        "held_out_loss": curve,
        "by_time": by_time,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
