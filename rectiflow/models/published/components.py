"""Components of a diffusers pipeline: each a folder with a config and files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rectiflow.base.errors import CheckpointError
from rectiflow.base.files import read_json
from rectiflow.models.model_folder import PIPELINE_FILE
from rectiflow.models.published.checkpoint import (
    OTHER_KIND,
    Part,
    recognise_part,
    refuse_other_family,
)
from rectiflow.models.published.header import SUFFIX, read_safetensors
from rectiflow.models.published.stored import StoredTensor

#: Where a diffusers pipeline keeps a part, and what its files of weights are called.
COMPONENTS = {
    "mmdit": ("transformer", "diffusion_pytorch_model"),
    "autoencoder": ("vae", "diffusion_pytorch_model"),
    "clip_l": ("text_encoder", "model"),
    "clip_g": ("text_encoder_2", "model"),
    "t5": ("text_encoder_3", "model"),
}
SCHEDULER_FILE = "scheduler_config.json"
#: In the metadata of weights: tensors that are the identity and stand for none.
IDENTITY_KEY = "rectiflow.identity"
CONFIG_FILE = "config.json"
#: So begins the name of every class of pipelines for SD3.
_PIPELINES = "StableDiffusion3"
_KINDS = {"SD3Transformer2DModel": "mmdit", "AutoencoderKL": "autoencoder"}


def refuse_other_pipeline(folder: Path) -> None:
    """Pass if the folder is none of diffusers' pipelines, or one of Stable Diffusion 3.

    Raises:
        CheckpointError: it is one of another family.
    """
    path = folder / PIPELINE_FILE
    name = read_object(path).get("_class_name") if path.is_file() else None
    if name is not None and not str(name).startswith(_PIPELINES):
        raise CheckpointError(f"{folder} is a {name}, {OTHER_KIND}")


def kind_of_component(folder: Path) -> str:
    """Which part a lone component is, from its config.

    Raises:
        CheckpointError: none that is known.
    """
    name = _read_config(folder).get("_class_name")
    if name not in _KINDS:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes {name or 'no class of diffusers'}; rectiflow knows "
            f"{' and '.join(_KINDS)}"
        )
    return _KINDS[name]


def open_component(folder: Path, kind: str) -> Part:
    """The part of that kind, from headers and config.

    Raises:
        CheckpointError: it is cut, damaged, of another format or family, or lacks tensors.
    """
    config = _read_config(folder)
    name = config.get("_class_name")
    if name is not None and _KINDS.get(name) != kind:
        raise CheckpointError(f"{folder} is a {name}, {OTHER_KIND}")
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder, COMPONENTS[kind][1]):
        found = read_safetensors(file)
        tensors |= found.tensors
        for name in found.metadata.get(IDENTITY_KEY, "").split():
            tensors.pop(name, None)
    refuse_other_family(folder, tensors)
    return recognise_part(kind, "diffusers", folder, tensors, given=config)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises:
        UserError: it cannot be read.
        CheckpointError: it holds something else.
    """
    # Schedulers of the public library have -Infinity among their settings.
    data = read_json(path, may_be_non_finite=True)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch the file again")
    return cast(dict[str, Any], data)


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """One file, or the shards that an index lists; a variant such as fp16 where nothing else is."""
    indices = sorted(folder.glob(f"{stem}{SUFFIX}.index*.json"), key=lambda p: len(p.name))
    whole = [folder / f"{stem}{SUFFIX}", *sorted(folder.glob(f"{stem}.*{SUFFIX}"))]
    # Shards of a variant have its name in front of their number, and an index beside them.
    whole = [path for path in whole if path.is_file() and "-of-" not in path.name]
    if whole and (whole[0].name == f"{stem}{SUFFIX}" or not indices):
        return whole[:1]
    if not indices:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]
        reason = "pickles, which can run any code when opened" if pickles else "no weights"
        raise CheckpointError(
            f"{folder} holds {reason}; rectiflow reads {stem}{SUFFIX}: fetch the model in that "
            "format"
        )
    index = read_json(indices[0])
    try:
        names = sorted(set(cast(Mapping[str, str], index["weight_map"]).values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{indices[0]} lists no shards; fetch the file again") from error
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{indices[0]} leads out of its folder; fetch the model again")
    return [folder / name for name in names]
