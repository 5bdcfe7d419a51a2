"""Trains the demo's kind of network for minutes to an hour of one thread, and scores it.

OMP_NUM_THREADS=1 python longer.py STORE STEPS --width 192 --depth 3 --batch 32 --decay 0.6

With `--whiten EPS` text tokens come to the network with their principal components scaled to equal
variance, as far as that is above EPS; the map is linear, and could be folded into the embedder's
weights. Prints a JSON row.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rectiflow.evaluation.shapeworld import evaluate
from rectiflow.generation.frozen_parts import shipped_parts
from rectiflow.models.layers.linear import Linear
from rectiflow.recipes.previews import model_in_training
from rectiflow.recipes.small import BACKBONES, demo, small
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import Feed, open_feed
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.state import TrainState
from rectiflow.training.step import condition, train_step
from rectiflow.training.validation import validate

NUM_LOOKS = 8
NUM_BATCHES = 64
PER_TASK = 50


class Whitened(Linear):
    """A linear layer behind a fixed affine map of its input."""

    mean: Tensor
    whitening: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) @ self.whitening)


def whiten(state: TrainState, feed: Feed, eps: float) -> None:
    """Put a map before the embedder of text tokens, by the moments of the first batches' tokens."""
    batches = (feed.batch_at(step) for step in range(NUM_BATCHES))
    # Without the first token, which is always the same.
    tokens = torch.cat([condition(batch, None).context[:, 1:].flatten(0, 1) for batch in batches])
    mean = tokens.double().mean(0)
    centered = tokens.double() - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    scales = (variances.clamp_min(0.0) + eps).rsqrt()
    scales *= (len(scales) / (variances.clamp_min(0.0) * scales**2).sum()).sqrt()
    for model in (state.backbone, state.ema.model):
        embedder = model.context_embedder
        embedder.__class__ = Whitened
        embedder.mean = mean.float()
        embedder.whitening = (directions * scales @ directions.T).float()


def main() -> None:
    """Train, look at the held-out loss on the way, score, and print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--decay", type=float, default=0.4)
    parser.add_argument("--whiten", type=float, metavar="EPS")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    backbone = replace(BACKBONES["uvit"](chosen.depth), width=chosen.width, use_qk_norm=True)
    rate = small("longer", backbone).optimizer.learning_rate
    optimizer = demo().optimizer
    recipe = replace(
        demo(),
        backbone=backbone,
        optimizer=replace(
            optimizer, learning_rate=rate, rest=replace(optimizer.rest, learning_rate=rate)
        ),
        seed=chosen.seed,
        batch_size=chosen.batch,
        max_steps=chosen.steps,
        schedule=Trapezoid(warmup_steps=100, decay_fraction=chosen.decay),
        ema=EmaConfig(decay=0.998),
    )
    feed, state = open_feed(chosen.store, recipe), TrainState.start(recipe)
    if chosen.whiten is not None:
        whiten(state, feed, chosen.whiten)
    spent_s, curve = 0.0, []
    for step in range(recipe.max_steps):
        started = time.process_time()
        train_step(state, feed.batch_at(step), recipe)
        spent_s += time.process_time() - started
        if (step + 1) % (recipe.max_steps // NUM_LOOKS) == 0:
            loss = validate(state.ema.model, feed.validation, demo()).loss
            curve.append([step + 1, round(spent_s), round(loss, 4)])
    parts = shipped_parts()
    model = model_in_training(
        recipe,
        state.ema.model,
        autoencoder=parts.autoencoder,
        conditioner=parts.conditioner,
        sampling=recipe.sampling,
        world="small",
        resolution_px=64,
    )
    scores = evaluate(model, per_task=PER_TASK)
    seen = scores.overall.seen
    row = {
        **{name: value for name, value in vars(chosen).items() if name != "store"},
        "store": chosen.store.name,
        "pictures": chosen.steps * chosen.batch,
        "seconds": round(spent_s, 1),
        "held_out_loss": curve,
        "overall": round(seen.lenient.mean, 3),
        "strict": round(seen.strict.mean, 3),
        "graded": round(seen.graded.mean, 3),
        "tasks": {name: round(task.seen.lenient.mean, 2) for name, task in scores.tasks.items()},
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
