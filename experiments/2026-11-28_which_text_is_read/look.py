"""Trains a variant for a while on one thread and says what of the text it reads by then.

rectiflow shapeworld draw --count 50000 --out images && rectiflow encode images --out store
OMP_NUM_THREADS=1 python look.py store 1200 600 --qk-norm --pooled-dropout 0.5

Without decay of the rate, with a short average. Prints the losses on held-out samples, with the
captions as they are drawn and with full ones, which leave less open.
"""

import time
from dataclasses import replace

import torch
from variants import losses, variant, variant_parser

from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import open_feed
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step


def main() -> None:
    """Train, and look every so many steps."""
    parser = variant_parser(__doc__)
    parser.add_argument("every", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recipe = replace(variant(chosen, steps=10**9), ema=EmaConfig(decay=0.99))
    feed, state = open_feed(chosen.store, recipe), TrainState.start(recipe)
    full = open_feed(chosen.store, replace(recipe, caption_mix={"terse": 0.0, "full": 1.0}))
    spent_s = 0.0
    for step in range(1, chosen.steps + 1):
        started_s = time.process_time()
        train_step(state, feed.batch_at(step - 1), recipe)
        spent_s += time.process_time() - started_s
        if step % chosen.every == 0:
            average = state.ema.model
            print(
                f"step {step}, {spent_s:.0f} s: {losses(average, feed.validation)}, "
                f"full captions {losses(average, full.validation)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
