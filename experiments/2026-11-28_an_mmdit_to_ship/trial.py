"""Trains a small MM-DiT for some seconds of one thread; prints its held-out loss at t = 0.9.

rectiflow shapeworld draw --count 120000 --tasks TASKS --out images
rectiflow encode images --out store
OMP_NUM_THREADS=1 python trial.py store 150 --rate 2 --muon 2

TASKS are those of `rectiflow.recipes.parts.finished`. No rate decays, and the average is short.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rectiflow.data.records import Batch
from rectiflow.recipes.small import RATE_TIMES_WIDTH, tiny_mmdit
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import open_feed
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.state import TrainState
from rectiflow.training.step import condition, posterior_and_noise, train_step

LATENT_SIDE, LARGEST_SIDE = 8, 32
NUM_LOOKS = 5
LEVEL = 0.9


def variant(chosen: argparse.Namespace) -> TrainRecipe:
    """The recipe `tiny-mmdit` with what the options change."""
    recipe = tiny_mmdit()
    rate = RATE_TIMES_WIDTH / recipe.backbone.hidden_dim
    assert isinstance(recipe.optimizer, Muon)
    return replace(
        recipe,
        backbone=replace(
            recipe.backbone,
            head_dim=chosen.head_dim,
            patch_size=chosen.patch,
            position_side=LARGEST_SIDE // chosen.patch,
            base_side=LATENT_SIDE // chosen.patch,
        ),
        optimizer=replace(
            recipe.optimizer,
            learning_rate=chosen.muon * rate,
            rest=AdamW(learning_rate=chosen.rate * rate),
        ),
        batch_size=chosen.batch,
        max_steps=10**9,
        schedule=Trapezoid(warmup_steps=100, decay_fraction=0.0),
        ema=EmaConfig(decay=0.99),
        num_validation=256,
    )


@torch.no_grad()
def held_out_loss(backbone: nn.Module, batches: Sequence[Batch]) -> float:
    """The velocity's squared error at `LEVEL`, text whole."""
    total = 0.0
    for batch in batches:
        x0, eps = posterior_and_noise(batch, batch.keys, stream=3)
        t = torch.full((len(x0),), LEVEL)
        found = backbone(torch.lerp(x0, eps, LEVEL), t, condition(batch, None))
        total += (found - (eps - x0)).square().mean(dim=(1, 2, 3)).sum().item()
    return total / sum(map(len, batches))


def main() -> None:
    """Train, and look every so many seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--rate", type=float, default=1.0, help="AdamW's, times 0.4/width")
    parser.add_argument("--muon", type=float, default=1.0, help="Muon's, times 0.4/width")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recipe = variant(chosen)
    feed, state = open_feed(chosen.store, recipe), TrainState.start(recipe)
    spent_s, num_steps = 0.0, 0
    for look in range(1, NUM_LOOKS + 1):
        while spent_s < chosen.seconds * look / NUM_LOOKS:
            started_s = time.process_time()
            train_step(state, feed.batch_at(num_steps), recipe)
            spent_s += time.process_time() - started_s
            num_steps += 1
        loss = held_out_loss(state.ema.model, feed.validation)
        print(f"{spent_s:.0f} s, {num_steps * chosen.batch} pictures: {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
