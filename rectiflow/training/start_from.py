"""The first weights of a run that goes on from a finished model, such as a fine-tuning run.

On the walk of a sample: the loop reads them once, before the first step; from the first checkpoint
on the run stands on its own. Source: arXiv 2403.03206, section 5.3.2 (a model trained at a low
resolution is fine-tuned at a high one, with QK-norm that it had been trained without).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import CheckpointError
from rectiflow.base.files import read_json
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.attention import HeadNorm
from rectiflow.models.model_folder import (
    CARD_FILE,
    WEIGHTS_FILE,
    find_model_folder,
    is_own_model,
    read_model_weights,
)
from rectiflow.models.published import open_checkpoint
from rectiflow.models.published.stored import StoredTensor
from rectiflow.training.recipe import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class FirstWeights:
    """A model's averaged weights, by the name that the recipe gives and their hash.

    The tensors lie where they were found until each is used, and keep their types. `positions`
    [side, side, d] is the grid that a released file holds; None where it is the closed form's.
    `provenance` is what the card of a model of ours says of how it was made.
    """

    name: str
    sha256: str
    tensors: Mapping[str, StoredTensor]
    positions: StoredTensor | None = None
    provenance: Mapping[str, Any] | None = None

    def origin_of(self, recipe: TrainRecipe) -> dict[str, Any]:
        """What checkpoints and the exported model's provenance keep of it."""
        origin: dict[str, Any] = {"model": self.name, "sha256": self.sha256}
        if recipe.add_qk_norm:
            origin["added"] = "qk_norm"
        if self.provenance is not None:
            origin["provenance"] = dict(self.provenance)
        return origin

    def values_for(
        self, backbone: Backbone, *, add_qk_norm: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """All of a backbone's weights by name, whole, one after another, as they are stored.

        With `add_qk_norm` the norms of queries and keys are new. No weights of theirs leave the
        network's function as it was, so they start at 1 like any norm: no attention logit is then
        above sqrt(head_dim), and fine-tuning learns how sharp each head should be.

        Raises:
            CheckpointError: the model's tensors are not the backbone's; the text gives the first
                that differs. With `add_qk_norm`: the model has such norms already.
        """
        own = backbone.state_dict()
        norms = {
            f"{name}.weight"
            for name, module in backbone.named_modules()
            if isinstance(module, HeadNorm)
        }
        if add_qk_norm and norms & self.tensors.keys():
            raise CheckpointError(
                f"start_from={self.name}: it was trained with QK-norm, so there is none to add; "
                "leave add_qk_norm out"
            )
        added = norms if add_qk_norm else set[str]()
        for name in [*own, *self.tensors]:
            if name in added:
                continue
            ours, theirs = own.get(name), self.tensors.get(name)
            if ours is None or theirs is None or tuple(ours.shape) != theirs.shape:
                raise CheckpointError(
                    f"start_from={self.name}: its tensor {name!r} is {_shape(theirs)}, the "
                    f"recipe's backbone needs {_shape(ours)}; give the recipe the backbone that "
                    f"stands in the model's {CARD_FILE}, or start from another model"
                    + ("; to add QK-norm, set add_qk_norm" if name in norms else "")
                )
        return (
            (name, torch.ones(ours.shape) if name in added else self.tensors[name].load())
            for name, ours in own.items()
        )

    def positions_for(self, backbone: Backbone) -> Float[Tensor, "side side d"]:
        """The file's own position grid, or the closed form's where it has none.

        Raises:
            CheckpointError: the file's grid has another size than the backbone's.
        """
        if self.positions is None:
            return backbone.closed_form_positions()
        grid = backbone.pos_embed
        if self.positions.num_elements != grid.numel():
            side = math.isqrt(self.positions.num_elements // grid.shape[-1])
            raise CheckpointError(
                f"start_from={self.name}: it has a position grid of {side}×{side}, the recipe's "
                f"backbone has {grid.shape[0]}×{grid.shape[1]}, and this run keeps the model's; "
                f"set backbone.position_side to {side}"
            )
        return self.positions.load(torch.float32).reshape(grid.shape)


def read_first_weights(name_or_path: str) -> FirstWeights:
    """The weights of a shipped model by name, of a run's or a model's folder, or released ones.

    Raises:
        UserError: there is no such model.
        CheckpointError: its files are missing, cut or damaged, or hold no MM-DiT.
    """
    if not is_own_model(name_or_path) and Path(name_or_path).exists():
        part = open_checkpoint(name_or_path).part("mmdit")
        tensors = dict(part.own_tensors())
        positions = tensors.pop("pos_embed")
        return FirstWeights(
            name=name_or_path, sha256=part.sha256(), tensors=tensors, positions=positions
        )
    folder = find_model_folder(name_or_path)
    card = read_json(folder / CARD_FILE)
    hashes = card["sha256"]
    tensors = read_model_weights(folder, hashes)
    return FirstWeights(
        name=name_or_path,
        sha256=hashes[WEIGHTS_FILE],
        tensors={name: StoredTensor.of(tensor) for name, tensor in tensors.items()},
        provenance=card.get("provenance"),
    )


def read_same_weights(name_or_path: str, origin: Mapping[str, Any]) -> FirstWeights:
    """The weights that a run began with, for a LoRA to go on or for the run to start over.

    Raises:
        CheckpointError: the model is another one by now, or as `read_first_weights`.
        UserError: there is no such model.
    """
    found = read_first_weights(name_or_path)
    if found.sha256 != origin["sha256"]:
        raise CheckpointError(
            f"{name_or_path} is not the model that the run was begun with: its SHA-256 is "
            f"{found.sha256[:12]}…, it was {origin['sha256'][:12]}…; put the former back, or "
            "choose another run folder"
        )
    return found


def _shape(tensor: Tensor | StoredTensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
