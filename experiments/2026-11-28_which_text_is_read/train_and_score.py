"""Trains a variant to its end on one thread, says what of the text it reads, and scores it.

rectiflow shapeworld draw --count 50000 --out images && rectiflow encode images --out store
OMP_NUM_THREADS=1 python train_and_score.py store 4000 runs/reading --qk-norm --pooled-dropout 0.5
"""

import time
from pathlib import Path

import torch
from variants import losses, variant, variant_parser

from rectiflow.cli.main import main as rectiflow
from rectiflow.generation.model import load_model
from rectiflow.training.feed import open_feed
from rectiflow.training.loop import train


def main() -> None:
    """Train, print time and losses, and score."""
    parser = variant_parser(__doc__)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recipe = variant(chosen, chosen.steps)
    started_s = time.process_time()
    result = train(recipe, chosen.store, chosen.out, progress=False)
    spent_s = time.process_time() - started_s
    assert result.validation is not None
    shown = losses(load_model(chosen.out).backbone, open_feed(chosen.store, recipe).validation)
    print(f"{spent_s:.0f} s, held-out loss {result.validation.ema.loss:.3f}, at t = 0.9: {shown}")
    rectiflow(["evaluate", str(chosen.out), "--per-task", "25"])


if __name__ == "__main__":
    main()
