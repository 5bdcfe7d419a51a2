"""Trains the demo's recipe on one thread, with variants of how text comes in, and scores.

rectiflow shapeworld draw --count 50000 --out images && rectiflow encode images --out store
OMP_NUM_THREADS=1 python train_and_score.py store 2350 runs/qk --qk-norm
OMP_NUM_THREADS=1 python train_and_score.py store 2350 runs/both --qk-norm --pooled-dropout 0.5

`--pooled-dropout` leaves the pooled vector out of a sample, independently of the encoders. Prints
the loss at t = 0.9 with all of the text, the pooled vector alone, the tokens alone, and none.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rectiflow.base import philox
from rectiflow.cli.main import main as rectiflow
from rectiflow.data.records import Batch
from rectiflow.generation.model import load_model
from rectiflow.models.conditioning import Conditioning
from rectiflow.recipes.small import demo
from rectiflow.training import step as training_step
from rectiflow.training.feed import open_feed
from rectiflow.training.loop import train
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.step import condition, posterior_and_noise

POOLED_STREAM = 40
LEVEL = 0.9


def drop_pooled(share: float) -> None:
    """Let training's conditioning lose its pooled vector with this probability."""

    def dropping(batch: Batch, keep: Tensor | None) -> Conditioning:
        whole = condition(batch, keep)
        if keep is None:
            return whole
        kept = philox.uniform(batch.keys, 1, stream=POOLED_STREAM) >= share
        return Conditioning(context=whole.context, pooled=whole.pooled * kept)

    training_step.condition = dropping


@torch.no_grad()
def losses(backbone: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Held-out loss at t = 0.9 by what of the text is there."""
    sums = dict.fromkeys(("all", "pooled", "tokens", "none"), 0.0)
    for batch in batches:
        x0, eps = posterior_and_noise(batch, batch.keys, stream=3)
        z_t, t = torch.lerp(x0, eps, LEVEL), torch.full((len(x0),), LEVEL)
        text = condition(batch, None)
        no_tokens, no_pooled = torch.zeros_like(text.context), torch.zeros_like(text.pooled)
        shown = {
            "all": text,
            "pooled": Conditioning(context=no_tokens, pooled=text.pooled),
            "tokens": Conditioning(context=text.context, pooled=no_pooled),
            "none": Conditioning(context=no_tokens, pooled=no_pooled),
        }
        for name, conditioning in shown.items():
            error = backbone(z_t, t, conditioning) - (eps - x0)
            sums[name] += error.square().mean(dim=(1, 2, 3)).sum().item()
    num = sum(map(len, batches))
    return {name: round(total / num, 3) for name, total in sums.items()}


def main() -> None:
    """Train, print time and losses, and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--qk-norm", action="store_true")
    parser.add_argument("--pooled-dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.pooled_dropout:
        drop_pooled(chosen.pooled_dropout)
    recipe: TrainRecipe = replace(
        demo(),
        seed=chosen.seed,
        backbone=replace(demo().backbone, use_qk_norm=chosen.qk_norm),
        max_steps=chosen.steps,
        validate_every=chosen.steps // 4,
        checkpoint_every=chosen.steps,
        sample_every=0,
    )
    started_s = time.process_time()
    result = train(recipe, chosen.store, chosen.out, progress=False)
    spent_s = time.process_time() - started_s
    assert result.validation is not None
    batches = open_feed(chosen.store, recipe).validation
    shown = losses(load_model(chosen.out).backbone, batches)
    print(f"{spent_s:.0f} s, held-out loss {result.validation.ema.loss:.3f}, at t = 0.9: {shown}")
    rectiflow(["evaluate", str(chosen.out), "--per-task", "25"])


if __name__ == "__main__":
    main()
