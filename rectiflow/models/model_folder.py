"""A finished model as a folder: which one a name or path means, and its weights, checked.

On both walks: generation loads a `Model` from it, and training may start from its weights.
Format: `docs/formats.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import sha256_file
from rectiflow.models.shipped import shipped_path

SHIPPED_MODELS = ("tiny", "tiny-mmdit")
CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
#: What the model of a run holds instead where it was fine-tuned from released weights.
PIPELINE_FILE = "model_index.json"
LORA_FILE = "lora.safetensors"


def is_shipped(name_or_path: str | Path) -> bool:
    """Whether a name means a model that ships: it does unless a model lies in a folder called so.

    Such a folder comes first, as whoever trained into it expects; one of anything else does not.
    """
    if str(name_or_path) not in SHIPPED_MODELS:
        return False
    path = Path(name_or_path)
    return not (_holds_own_model(path) or (path / PIPELINE_FILE).is_file() or find_pipeline(path))


def is_own_model(name_or_path: str | Path) -> bool:
    """Whether a name or path means a model that ships, or a run's or model's folder of ours.

    A run whose model is a diffusers pipeline counts as released weights.
    """
    if is_shipped(name_or_path):
        return True
    path = Path(name_or_path)
    return find_pipeline(path) is None and _holds_own_model(path)


def _holds_own_model(folder: Path) -> bool:
    marks = (CARD_FILE, f"model/{CARD_FILE}", "recipe.json")
    return any((folder / mark).is_file() for mark in marks)


def find_pipeline(name_or_path: str | Path) -> Path | None:
    """The diffusers pipeline that a run has as its model; None where it has another, or none."""
    folder = Path(name_or_path) / "model"
    return folder if (folder / PIPELINE_FILE).is_file() else None


def find_model_folder(name_or_path: str | Path) -> Path:
    """The folder with `model.json` and weights that a name or path means.

    Raises:
        UserError: there is none; the text says what was looked for.
        CheckpointError: a shipped model's files are damaged.
    """
    if is_shipped(name_or_path):
        return shipped_path(str(name_or_path))
    path = Path(name_or_path)
    if (path / CARD_FILE).is_file():
        return path
    if (path / "model" / CARD_FILE).is_file():
        return path / "model"
    if not path.exists():
        names = ", ".join(f'"{name}"' for name in SHIPPED_MODELS)
        raise UserError(
            f"there is no model {str(name_or_path)!r}: give {names}, the folder of a run that "
            "`rectiflow train` or `rectiflow demo` wrote, or a file or folder of released weights"
        )
    lora = next((f for f in (path / LORA_FILE, path / "model" / LORA_FILE) if f.is_file()), None)
    if lora is not None:
        raise UserError(
            f"{path} holds a LoRA, which changes a model and is none by itself; give the model "
            f"that it was trained for, and to draw the LoRA beside it: rectiflow sample MODEL "
            f"PROMPT --lora {lora}"
        )
    if find_pipeline(path) is not None:
        raise UserError(
            f"the model of the run {path} is a diffusers pipeline, and here a model of ours is "
            "needed; give one that `rectiflow train` or `rectiflow demo` wrote"
        )
    if (path / "recipe.json").is_file():
        raise UserError(
            f"the run {path} has no model yet: it has not reached its first checkpoint; continue "
            "it with the command that began it"
        )
    raise UserError(
        f"{path} is no model: it holds neither {CARD_FILE} nor model/{CARD_FILE}; give the folder "
        "of a run or of an exported model"
    )


def read_model_weights(folder: Path, sha256: Mapping[str, str]) -> dict[str, Tensor]:
    """The averaged weights of a model's folder, as they are stored, after a check of their hash.

    `sha256` maps files to the hashes that `model.json` states.

    Raises:
        UserError: the file is missing or cannot be read.
        CheckpointError: it is cut or damaged.
    """
    path = check_model_weights(folder, sha256)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}); copy or make the model again"
        ) from error


def check_model_weights(folder: Path, sha256: Mapping[str, str]) -> Path:
    """The file of a model's weights, after a check of its hash; raises as `read_model_weights`."""
    path = folder / WEIGHTS_FILE
    expected, found = sha256.get(WEIGHTS_FILE), sha256_file(path)
    if found != expected:
        raise CheckpointError(
            f"{path} is cut or damaged: its SHA-256 is {found[:12]}…, {CARD_FILE} says "
            f"{(expected or 'nothing')[:12]}…; copy or make the model again"
        )
    return path
