"""Trains one way of learning faster, or none, for some seconds of one thread; prints a JSON row.

rectiflow shapeworld draw --count 30000 --out images
rectiflow encode images --out store --features
OMP_NUM_THREADS=1 python arms.py store mmdit align-first 200 --seed 0 >> rows.jsonl

Held-out losses are the plain ones of the averaged weights, against the processor seconds spent on
training. No rate decays, so that every look stands for itself.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from rectiflow.recipes.small import demo, tiny_mmdit
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import open_feed
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.routing import TokenRouting
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step
from rectiflow.training.validation import validate

#: Far beyond the end of any run, so that no rate decays.
ENDLESS = 10**9
NUM_LOOKS = 5
RECIPES: dict[str, Callable[[], TrainRecipe]] = {"mmdit": tiny_mmdit, "uvit": demo}


def arm(name: str, recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with one method; blocks are those that a network of this depth has."""
    last = recipe.backbone.depth - 1
    match name:
        case "plain":
            return recipe
        case "align-first":
            return replace(recipe, alignment=RepresentationAlignment(weight=0.5, block=0))
        case "align-last-but-one":
            return replace(recipe, alignment=RepresentationAlignment(weight=0.5, block=last - 1))
        case "route":
            return replace(recipe, routing=TokenRouting(share=0.5, first=last - 1, last=last - 1))
        case "contrast":
            return replace(recipe, contrast=0.05)
        case _:
            raise SystemExit(f"no arm {name!r}")


def main() -> None:
    """Train, look at the held-out loss on the way, and print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("backbone", choices=RECIPES)
    parser.add_argument("arm")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    plain = replace(
        RECIPES[chosen.backbone](),
        seed=chosen.seed,
        max_steps=ENDLESS,
        ema=EmaConfig(decay=0.99),
        num_validation=256,
    )
    recipe = arm(chosen.arm, plain)
    feed, state = open_feed(chosen.store, recipe), TrainState.start(recipe)
    spent_s, num_steps, curve = 0.0, 0, []
    by_time, similarity = list[float](), None
    for look in range(1, NUM_LOOKS + 1):
        while spent_s < chosen.seconds * look / NUM_LOOKS:
            started = time.process_time()
            result = train_step(state, feed.batch_at(num_steps), recipe)
            spent_s += time.process_time() - started
            num_steps += 1
            similarity = result.similarity
        measured = validate(state.ema.model, feed.validation, plain)
        curve.append([round(spent_s, 1), num_steps, round(measured.loss, 4)])
        by_time = [round(loss, 4) for loss in measured.per_level]
    row = {
        "backbone": chosen.backbone,
        "arm": chosen.arm,
        "seed": chosen.seed,
        "held_out_loss": curve,
        "by_time": by_time,
        "similarity": similarity,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
