"""The finished product of a run: `model/` with the EMA weights and what sampling needs to know.

On the walk of a prompt this folder is where `generation` starts. Format: `docs/formats.md`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rectiflow.base.config import to_json
from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_directory, read_json, sha256_file, write_json
from rectiflow.models.model_folder import CARD_FILE, WEIGHTS_FILE
from rectiflow.training.checkpoint import STATE_FILE
from rectiflow.training.environment import source_commit
from rectiflow.training.export_fine_tuned import PROVENANCE_FILE, export_lora, export_pipeline
from rectiflow.training.feed import StoreFacts
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.tensor_files import SavedTensors, write_tensors

FORMAT = 1


def export_model(run: Path, checkpoint: Path, recipe: TrainRecipe, facts: StoreFacts) -> Path:
    """Write `run/model/` as a checkpoint has it, replacing an earlier one whole.

    Raises:
        UserError: it cannot be written.
    """
    path, fresh = run / "model", run / ".model.tmp-new"
    shutil.rmtree(fresh, ignore_errors=True)
    average = SavedTensors.of(checkpoint, "ema").read_all()
    header = read_json(checkpoint / STATE_FILE)
    write_model(fresh, run, average, recipe, _describe(header, recipe, facts))
    old = run / ".model.tmp-old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(fresh, path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def write_model(
    path: Path,
    run: Path,
    average: Mapping[str, Tensor],
    recipe: TrainRecipe,
    description: dict[str, Any],
) -> None:
    """Write averaged weights as the recipe lays its model out, into a new folder.

    Of `description`, which is `model.json` without the hash of the weights, the other layouts take
    the provenance.

    Raises:
        UserError: it cannot be written.
    """
    if recipe.lora is not None:
        export_lora(path, average, recipe, description["provenance"])
    elif recipe.export_layout == "diffusers":
        export_pipeline(path, run, average, recipe, description["provenance"])
    else:
        with atomic_directory(path) as folder:
            weights = folder / WEIGHTS_FILE
            write_tensors(weights, average)
            hashes = {WEIGHTS_FILE: sha256_file(weights)}
            write_json(folder / CARD_FILE, {"format": FORMAT, "sha256": hashes} | description)


def read_description(run: Path) -> dict[str, Any]:
    """What `write_model` was given for the model that a run has.

    Raises:
        UserError: it has none yet.
    """
    card, provenance = run / "model" / CARD_FILE, run / "model" / PROVENANCE_FILE
    if provenance.exists():
        return {"provenance": read_json(provenance)}
    if not card.exists():
        raise UserError(
            f"{run} has no model yet: it has not reached its first checkpoint; continue it with "
            "the command that began it"
        )
    description = read_json(card)
    return {name: description[name] for name in description if name not in ("format", "sha256")}


def _describe(header: Mapping[str, Any], recipe: TrainRecipe, facts: StoreFacts) -> dict[str, Any]:
    return {
        # Out of the recipe, whose field is a union: alone the config would not say its kind.
        "backbone": to_json(recipe)["backbone"],
        "formulation": to_json(recipe.formulation),
        "autoencoder": facts.autoencoder,
        "text": facts.text,
        "world": facts.world,
        "resolution_px": facts.resolution_px,
        "sampling": to_json(recipe.sampling) | {"shift": recipe.shift.alpha},
        "provenance": _provenance(header, recipe, facts),
        # As with the backbone; models of shipped parts do without.
        **({} if facts.parts is None else {"parts": to_json(facts)["parts"]}),
    }


def _provenance(
    header: Mapping[str, Any], recipe: TrainRecipe, facts: StoreFacts
) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "start_from": header["origin"],
        "seed": recipe.seed,
        "step": header["step"],
        "max_steps": recipe.max_steps,
        "images_seen": header["step"] * recipe.batch_size,
        "training_s": round(header["elapsed_s"], 1),
        "commit": source_commit(),
        "store": facts.fingerprint,
    }
