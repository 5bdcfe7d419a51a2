"""Trains one backbone as the demo does, for a number of steps on one thread, and scores it.

rectiflow shapeworld draw --count 20000 --out images && rectiflow encode images --out store
OMP_NUM_THREADS=1 python train_and_score.py store mmdit-d3 1600 runs/mmdit-d3
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from rectiflow.cli.main import main as rectiflow
from rectiflow.models.backbones import BackboneConfig
from rectiflow.recipes.small import BACKBONES, RATE_TIMES_WIDTH, demo
from rectiflow.training.loop import train
from rectiflow.training.optimizers import AdamW

CANDIDATES: dict[str, BackboneConfig] = {
    "mmdit-d3": BACKBONES["mmdit"](3),
    "uvit-d2": BACKBONES["uvit"](2),
    "uvit-d2-w192": replace(BACKBONES["uvit"](2), width=192),
}


def main() -> None:
    """Train, print the time and the held-out loss of the averaged weights, and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("backbone", choices=CANDIDATES)
    parser.add_argument("steps", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    backbone = CANDIDATES[chosen.backbone]
    recipe = replace(
        demo(),
        name=chosen.backbone,
        seed=chosen.seed,
        backbone=backbone,
        optimizer=AdamW(learning_rate=RATE_TIMES_WIDTH / backbone.hidden_dim),
        max_steps=chosen.steps,
        validate_every=chosen.steps // 4,
        checkpoint_every=chosen.steps,
        sample_every=0,
    )
    started_s = time.process_time()
    result = train(recipe, chosen.store, chosen.out, progress=False)
    assert result.validation is not None
    loss = result.validation.ema.loss
    print(f"{time.process_time() - started_s:.0f} s of one core, held-out loss {loss:.3f}")
    scores = str(chosen.out / "scores.json")
    rectiflow(["evaluate", str(chosen.out), "--per-task", "25", "--out", scores])


if __name__ == "__main__":
    main()
