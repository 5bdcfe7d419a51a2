"""The finished product of a run: `model/` with the EMA weights and what sampling needs to know.

On the walk of a prompt this folder is where `generation` starts. Format: `docs/formats.md`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rectiflow.base.config import to_json
from rectiflow.base.files import atomic_directory, sha256_file, write_json
from rectiflow.training.checkpoint import write_tensors
from rectiflow.training.environment import source_commit
from rectiflow.training.feed import StoreFacts
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import Snapshot

FORMAT = 1


def export_model(run: Path, state: Snapshot, recipe: TrainRecipe, facts: StoreFacts) -> Path:
    """Write `run/model/`, replacing an earlier one whole.

    Raises:
        UserError: it cannot be written.
    """
    path, fresh = run / "model", run / ".model.tmp-new"
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_directory(fresh) as folder:
        write_tensors(folder / "weights.safetensors", state.tensors["ema"])
        digest = sha256_file(folder / "weights.safetensors")
        write_json(folder / "model.json", _describe(state, recipe, facts, digest))
    old = run / ".model.tmp-old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(fresh, path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def _describe(
    state: Snapshot, recipe: TrainRecipe, facts: StoreFacts, digest: str
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "sha256": {"weights.safetensors": digest},
        # Out of the recipe, whose field is a union: alone the config would not say its kind.
        "backbone": to_json(recipe)["backbone"],
        "formulation": to_json(recipe.formulation),
        "autoencoder": facts.autoencoder,
        "text": facts.text,
        "world": facts.world,
        "resolution_px": facts.resolution_px,
        "sampling": to_json(recipe.sampling) | {"shift": recipe.shift.alpha},
        "provenance": {
            "recipe": recipe.name,
            "start_from": state.origin,
            "seed": recipe.seed,
            "step": state.step,
            "max_steps": recipe.max_steps,
            "images_seen": state.step * recipe.batch_size,
            "training_s": round(state.elapsed_s, 1),
            "commit": source_commit(),
            "store": facts.fingerprint,
        },
    }
