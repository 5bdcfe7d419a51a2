"""What a run of a few minutes has learned, by the clock: one variant of the demo on one thread.

OMP_NUM_THREADS=1 python short_runs.py STORE SECONDS --depth 3 --batch-size 16 ...
"""

import argparse
import time
from dataclasses import replace

import torch

from rectiflow.data.records import Batch
from rectiflow.recipes.small import mmdit
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import open_feed
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.state import TrainState
from rectiflow.training.step import Draw, condition, forward, posterior_and_noise, train_step

LEVELS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
LOOK_EVERY_S = 60.0


@torch.no_grad()
def losses(state: TrainState, batches: list[Batch], recipe: TrainRecipe) -> list[float]:
    """Held-out velocity loss of the averaged weights at each level."""
    found: list[float] = []
    for stream, level in enumerate(LEVELS):
        parts = []
        for batch in batches:
            x0, eps = posterior_and_noise(batch, batch.keys, stream=stream)
            example = Draw(
                x0=x0,
                eps=eps,
                t=torch.full((len(x0),), level),
                conditioning=condition(batch, None),
            )
            parts.append(forward(state.ema.model, example, recipe).per_sample)
        found.append(torch.cat(parts).mean().item())
    return found


def main() -> None:
    """Train one variant at a constant rate, and look at it every minute of training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--patch-size", type=int, default=2, choices=(1, 2))
    parser.add_argument("--muon", action="store_true")
    parser.add_argument("--qk-norm", action="store_true")
    parser.add_argument("--encoder-dropout", type=float, default=0.464)
    parser.add_argument("--ema-decay", type=float, default=0.995)
    chosen = parser.parse_args()
    rest = AdamW(learning_rate=chosen.learning_rate)
    base = mmdit(chosen.depth)
    recipe = replace(
        base,
        backbone=replace(
            base.backbone,
            patch_size=chosen.patch_size,
            position_side=32 // chosen.patch_size,
            base_side=8 // chosen.patch_size,
            use_qk_norm=chosen.qk_norm,
        ),
        batch_size=chosen.batch_size,
        max_steps=100_000,
        encoder_dropout=chosen.encoder_dropout,
        optimizer=Muon(learning_rate=chosen.learning_rate, rest=rest) if chosen.muon else rest,
        schedule=Trapezoid(warmup_steps=100, decay_fraction=0.0),
        ema=EmaConfig(decay=chosen.ema_decay),
    )
    feed, state = open_feed(chosen.store, recipe), TrainState.start(recipe)
    spent, next_look = 0.0, LOOK_EVERY_S
    while spent < chosen.seconds:
        started = time.perf_counter()
        train_step(state, feed.batch_at(state.step), recipe)
        spent += time.perf_counter() - started
        if spent > next_look:
            next_look += LOOK_EVERY_S
            found = losses(state, list(feed.validation[:2]), recipe)
            print(
                f"{spent:.0f} s, step {state.step}, "
                f"{state.step * recipe.batch_size / spent:.0f} images/s: "
                f"{' '.join(f'{loss:.4f}' for loss in found)}, mean {sum(found) / len(found):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
