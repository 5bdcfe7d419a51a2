"""An autoencoder as a folder: `config.json` and `weights.safetensors`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rectiflow.base.config import load_config, save_config
from rectiflow.base.errors import CheckpointError
from rectiflow.models.autoencoder.autoencoder import Autoencoder, AutoencoderConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"


def save_autoencoder(autoencoder: Autoencoder, folder: Path, *, dtype: torch.dtype) -> None:
    """Write config and weights, stored as `dtype`, into an existing folder."""
    save_config(folder / CONFIG_FILE, autoencoder.config)
    state = {name: value.to(dtype).contiguous() for name, value in autoencoder.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)


def load_autoencoder_folder(folder: Path) -> Autoencoder:
    """The autoencoder of a folder, in float32, frozen.

    Raises:
        UserError: the config cannot be read.
        CheckpointError: the weights are missing, cut, or of another size.
    """
    autoencoder = Autoencoder(load_config(folder / CONFIG_FILE, AutoencoderConfig))
    try:
        autoencoder.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load the autoencoder's weights from {folder / WEIGHTS_FILE}: {error}; "
            "fetch or make the file again"
        ) from error
    return autoencoder.float().eval().requires_grad_(False)
