"""What a fine-tuning run hands over to other tools: a LoRA's files, or a diffusers pipeline.

Beside `training.export`, which writes our own layout. The pipeline's other parts are made once,
before training, in the run's `PARTS_FOLDER`; each export links to their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_directory, link_tree, read_json, write_json
from rectiflow.models.lora import lora_of, save_lora
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.model_folder import LORA_FILE, PIPELINE_FILE
from rectiflow.models.published import part_of, save_diffusers_folder
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.run_folder import PREPARED_FOLDER

#: The pipeline that a run started from, without its MM-DiT.
PARTS_FOLDER = f"{PREPARED_FOLDER}/parts"
KOHYA_FILE = "lora_kohya.safetensors"
PROVENANCE_FILE = "provenance.json"


def refuse_missing_parts(run: Path, recipe: TrainRecipe) -> None:
    """Pass if what the run's model needs beside trained weights is there.

    Raises:
        UserError: it is not.
    """
    parts = run / PARTS_FOLDER
    if recipe.export_layout == "diffusers" and not (parts / PIPELINE_FILE).is_file():
        raise UserError(
            f"export_layout is diffusers, and there is no {parts} with the autoencoder and text "
            "encoders of the model; `rectiflow finetune` prepares them in a new run folder, and "
            "`rectiflow train` does without export_layout"
        )


def export_lora(
    path: Path, average: Mapping[str, Tensor], recipe: TrainRecipe, provenance: dict[str, Any]
) -> None:
    """Write the averaged LoRA as diffusers and PEFT name it, and as kohya's scripts do.

    Raises:
        UserError: it cannot be written.
    """
    assert isinstance(recipe.backbone, MMDiTConfig)
    lora = lora_of(recipe.backbone, average)
    with atomic_directory(path) as folder:
        save_lora(folder / LORA_FILE, lora)
        save_lora(folder / KOHYA_FILE, lora, "kohya")
        write_json(folder / PROVENANCE_FILE, provenance)


def export_pipeline(
    path: Path,
    run: Path,
    average: Mapping[str, Tensor],
    recipe: TrainRecipe,
    provenance: dict[str, Any],
) -> None:
    """Write the averaged model as the folder of a diffusers pipeline, with all its other parts.

    Raises:
        UserError: it cannot be written, or the run's other parts are gone.
    """
    refuse_missing_parts(run, recipe)
    parts = run / PARTS_FOLDER
    save_diffusers_folder(path, {"mmdit": part_of(_model_of(average, recipe))})
    index = read_json(parts / PIPELINE_FILE) | read_json(path / PIPELINE_FILE)
    write_json(path / PIPELINE_FILE, index)
    link_tree(parts, path)
    write_json(path / PROVENANCE_FILE, provenance)


def _model_of(average: Mapping[str, Tensor], recipe: TrainRecipe) -> MMDiT:
    """The model around averaged tensors; nothing is copied."""
    assert isinstance(recipe.backbone, MMDiTConfig)
    with torch.device("meta"):
        model = MMDiT(recipe.backbone)
    tensors = dict(average)
    model.pos_embed = tensors.pop("pos_embed")
    model.load_state_dict(tensors, assign=True)
    return model
