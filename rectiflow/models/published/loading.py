"""Networks from released files: built without memory, their tensors mapped from the file."""

from __future__ import annotations

from pathlib import Path

import torch

from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.published.checkpoint import Part
from rectiflow.models.published.folder import open_checkpoint


def load_mmdit(path: Path | str, *, dtype: torch.dtype | None = None) -> MMDiT:
    """The MM-DiT of a checkpoint, in evaluation mode.

    The network computes with the file's own position grid. Without `dtype` every tensor keeps the
    type that it is stored in, and what lies in one piece is mapped from the file: it takes memory
    when it is first used, and changes to it never reach the file.

    Raises:
        UserError: the path is missing or unreadable.
        CheckpointError: it is cut, damaged, no MM-DiT, or lacks tensors.
    """
    return build_mmdit(open_checkpoint(path).part("mmdit"), dtype=dtype)


def load_autoencoder(path: Path | str, *, dtype: torch.dtype | None = None) -> Autoencoder:
    """The autoencoder of a checkpoint, frozen; types and memory as in `load_mmdit`.

    Raises:
        UserError: the path is missing or unreadable.
        CheckpointError: it is cut, damaged, no autoencoder, or lacks tensors.
    """
    return build_autoencoder(open_checkpoint(path).part("autoencoder"), dtype=dtype)


def build_mmdit(part: Part, *, dtype: torch.dtype | None = None) -> MMDiT:
    """The MM-DiT of a part that was recognised, as `load_mmdit`."""
    assert isinstance(part.config, MMDiTConfig)
    with torch.device("meta"):
        model = MMDiT(part.config)
    state = {name: tensor.load(dtype) for name, tensor in part.own_tensors().items()}
    side = part.config.position_side
    model.pos_embed = state.pop("pos_embed").reshape(side, side, -1)
    model.load_state_dict(state, assign=True)
    return model.eval()


def build_autoencoder(part: Part, *, dtype: torch.dtype | None = None) -> Autoencoder:
    """The autoencoder of a part that was recognised, as `load_autoencoder`."""
    assert isinstance(part.config, AutoencoderConfig)
    with torch.device("meta"):
        model = Autoencoder(part.config)
    state = {name: tensor.load(dtype) for name, tensor in part.own_tensors().items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
