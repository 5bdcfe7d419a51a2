"""The figures of a finished demo as one JSON row, beside those of the machine that made it.

    time make demo OUT=my-demo
    python benchmarks/demo_row.py my-demo --wall-s SECONDS

`--wall-s` is what the whole command took, installation included unless `--was-installed`.
"""

import argparse
from pathlib import Path

from measure import print_row

from rectiflow.base.config import load_config
from rectiflow.base.files import read_json
from rectiflow.base.log import read_events
from rectiflow.evaluation.results import read_evaluation
from rectiflow.recipes.demo import DemoRecord
from rectiflow.recipes.parts.finished import scores_of
from rectiflow.training.recipe import TrainRecipe


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--wall-s", type=float, required=True)
    parser.add_argument("--was-installed", action="store_true")
    chosen = parser.parse_args()
    record = load_config(chosen.demo / "demo.json", DemoRecord)
    run = chosen.demo / "run"
    provenance = read_json(run / "model" / "model.json")["provenance"]
    print_row(
        "demo",
        minutes=record.minutes,
        backbone=load_config(run / "recipe.json", TrainRecipe).backbone.title,
        wall_s=chosen.wall_s,
        was_installed=chosen.was_installed,
        stages_s=record.stages,
        steps=provenance["step"],
        training_s=provenance["training_s"],
        images_per_s=round(provenance["images_seen"] / provenance["training_s"], 1),
        held_out_loss=read_events(run / "metrics.jsonl", "validation")[-1]["ema"]["loss"],
        made_at=provenance["commit"],
        scores=scores_of(read_evaluation(chosen.demo / "evaluation.json")),
    )


if __name__ == "__main__":
    main()
