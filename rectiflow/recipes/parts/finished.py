"""The shipped models: finished runs, stored in bfloat16 and scored as they will be loaded.

Their pictures show what is hard more often than what is easy. TASKS are
single_object=1,colors=1,two_object=2,counting=3,position=2,color_attr=2,typography=4:

    rectiflow shapeworld draw --count 120000 --tasks TASKS --out images
    rectiflow encode images --out store
    rectiflow train tiny --data store --out run
    python -m rectiflow.recipes.parts model --run run --out tiny

and so for `tiny-mmdit`, which two cores train faster with `--compile-blocks`. From that run, in the
folder `first`, it goes on twice with pictures of what it still gets wrong and mostly short
captions. HARD is single_object=1,colors=1,two_object=5,counting=4,position=2,color_attr=3,
typography=3, HARDER has 6, 5 and 1 for two_object, counting and position:

    rectiflow shapeworld draw --count 100000 --seed 1 --tasks HARD --out hard
    rectiflow encode hard --out hard_store
    rectiflow train tiny-mmdit --data hard_store --out second_run --start-from first \\
        --compile-blocks --max-steps 11000 --caption-mix terse 0.7 full 0.3 \\
        --schedule.decay-fraction 0.95 --optimizer.learning-rate 0.0015 \\
        --optimizer.rest.learning-rate 0.0015 --sample-every 0
    python -m rectiflow.recipes.parts model --run second_run --out second
    rectiflow shapeworld draw --count 100000 --seed 2 --tasks HARDER --out harder
    rectiflow encode harder --out harder_store
    rectiflow train tiny-mmdit --data harder_store --out third --start-from second \\
        --compile-blocks --max-steps 15000 --caption-mix terse 0.7 full 0.3 \\
        --schedule.decay-fraction 0.95 --optimizer.learning-rate 0.002 \\
        --optimizer.rest.learning-rate 0.002 --sample-every 0
    python -m rectiflow.recipes.parts model --run third --out tiny-mmdit
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rectiflow.base.config import save_config, to_json
from rectiflow.base.files import atomic_directory, read_json, sha256_file
from rectiflow.evaluation.results import Evaluation
from rectiflow.evaluation.shapeworld import evaluate
from rectiflow.generation.model import load_model, read_model_card
from rectiflow.models.model_folder import CARD_FILE, WEIGHTS_FILE, find_model_folder
from rectiflow.models.shipped.card import write_card
from rectiflow.training.tensor_files import write_tensors

PER_TASK = 100


def make_model(run: Path, out: Path, on_log: Callable[[dict[str, float]], None]) -> None:
    """Write the part to `out`, which must not exist.

    Raises:
        UserError: `run` holds no model, or `out` cannot be written.
        CheckpointError: the run's weights are damaged.
    """
    load_model(run)  # refuses damaged weights and other parts
    recipe = read_json(run / "recipe.json")
    source = find_model_folder(run)
    card = read_model_card(source)
    with atomic_directory(out) as folder:
        weights = load_file(source / WEIGHTS_FILE)
        write_tensors(folder / WEIGHTS_FILE, {k: v.to(torch.bfloat16) for k, v in weights.items()})
        digest = sha256_file(folder / WEIGHTS_FILE)
        save_config(folder / CARD_FILE, replace(card, sha256={WEIGHTS_FILE: digest}))
        evaluation = replace(evaluate(load_model(folder), per_task=PER_TASK), model=recipe["name"])
        on_log({"overall": evaluation.overall.seen.lenient.mean})
        write_card(
            folder,
            recipe=recipe,
            commit=str(card.provenance.get("commit", "unknown")),
            data={"world": card.world, "split": "train", "held_out": False} | card.provenance,
            scores=scores_of(evaluation),
        )


def scores_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation without its single pictures."""
    return to_json(replace(evaluation, pictures=()))
