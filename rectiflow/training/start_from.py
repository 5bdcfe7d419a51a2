"""The first weights of a run that goes on from a finished model, such as a fine-tuning run.

On the walk of a sample: the loop reads them once, before the first step; from the first checkpoint
on the run stands on its own. Source: arXiv 2403.03206, section 5.3.2 (a model trained at a low
resolution is fine-tuned at a high one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rectiflow.base.errors import CheckpointError
from rectiflow.base.files import read_json
from rectiflow.models.frame import Backbone
from rectiflow.models.model_folder import (
    CARD_FILE,
    WEIGHTS_FILE,
    find_model_folder,
    is_own_model,
    read_model_weights,
)
from rectiflow.models.published import open_checkpoint


@dataclass(frozen=True, kw_only=True)
class FirstWeights:
    """A model's averaged weights, by the name that the recipe gives and their hash.

    `positions` [side, side, d] is the grid that a released file holds; None where it is the closed
    form's.
    """

    name: str
    sha256: str
    tensors: Mapping[str, Tensor]
    positions: Tensor | None = None

    @property
    def origin(self) -> dict[str, str]:
        """What checkpoints and the exported model's provenance keep of it."""
        return {"model": self.name, "sha256": self.sha256}

    def copy_into(self, backbone: Backbone) -> None:
        """Replace all of a backbone's weights, and its positions where the file has its own.

        Raises:
            CheckpointError: the model's tensors are not the backbone's; the text gives the first
                that differs.
        """
        own = backbone.state_dict()
        for name in [*own, *self.tensors]:
            ours, theirs = own.get(name), self.tensors.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                raise CheckpointError(
                    f"start_from={self.name}: its tensor {name!r} is {_shape(theirs)}, the "
                    f"recipe's backbone needs {_shape(ours)}; give the recipe the backbone that "
                    f"stands in the model's {CARD_FILE}, or start from another model"
                )
        backbone.load_state_dict(dict(self.tensors))
        if self.positions is not None:
            backbone.pos_embed.copy_(self.positions.reshape(backbone.pos_embed.shape))


def read_first_weights(name_or_path: str, *, dtype: torch.dtype = torch.float32) -> FirstWeights:
    """The weights of a shipped model by name, of a run's or a model's folder, or released ones.

    Raises:
        UserError: there is no such model.
        CheckpointError: its files are missing, cut or damaged, or hold no MM-DiT.
    """
    if not is_own_model(name_or_path) and Path(name_or_path).exists():
        part = open_checkpoint(name_or_path).part("mmdit")
        tensors = {name: tensor.load(dtype) for name, tensor in part.own_tensors().items()}
        positions = tensors.pop("pos_embed")
        return FirstWeights(
            name=name_or_path, sha256=part.sha256(), tensors=tensors, positions=positions
        )
    folder = find_model_folder(name_or_path)
    hashes = read_json(folder / CARD_FILE)["sha256"]
    tensors = read_model_weights(folder, hashes)
    return FirstWeights(
        name=name_or_path,
        sha256=hashes[WEIGHTS_FILE],
        tensors={name: tensor.to(dtype) for name, tensor in tensors.items()},
    )


def read_same_weights(
    name_or_path: str, origin: Mapping[str, str], *, dtype: torch.dtype
) -> FirstWeights:
    """The weights that a run which trains a LoRA began with, for it to go on.

    Raises:
        CheckpointError: the model is another one by now, or as `read_first_weights`.
        UserError: there is no such model.
    """
    found = read_first_weights(name_or_path, dtype=dtype)
    if found.sha256 != origin["sha256"]:
        raise CheckpointError(
            f"{name_or_path} is not the model that the LoRA was begun with: its SHA-256 is "
            f"{found.sha256[:12]}…, it was {origin['sha256'][:12]}…; put the former back, or "
            "choose another run folder"
        )
    return found


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
