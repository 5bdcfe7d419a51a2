"""Components of a diffusers pipeline: each a folder with a config and files of weights."""

from __future__ import annotations

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
    name = _class_name(path)
    if name is not None and not name.startswith(_PIPELINES):
        raise CheckpointError(f"{folder} is a {name}, {OTHER_KIND}")


def kind_of_component(folder: Path) -> str:
    """Which part a lone component is, from its config.

    Raises:
        CheckpointError: none that is known.
    """
    name = _class_name(folder / CONFIG_FILE)
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
    name = _class_name(folder / CONFIG_FILE)
    if name is not None and _KINDS.get(name) != kind:
        raise CheckpointError(f"{folder} is a {name}, {OTHER_KIND}")
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder, COMPONENTS[kind][1]):
        found = read_safetensors(file)
        tensors |= found.tensors
        for name in found.metadata.get(IDENTITY_KEY, "").split():
            tensors.pop(name, None)
    refuse_other_family(folder, tensors)
    return recognise_part(
        kind, "diffusers", folder, tensors, given=_read_config(folder / CONFIG_FILE)
    )


def _class_name(path: Path) -> str | None:
    """The class of diffusers that a config is for; None where there is no config, or it has none.

    Raises:
        CheckpointError: it is no name.
    """
    name = _read_config(path).get("_class_name")
    if not isinstance(name, str | None):
        raise CheckpointError(
            f"{path} has {name!r:.40} as _class_name, no name of a class; fetch the file again"
        )
    return name


def _read_config(path: Path) -> dict[str, Any]:
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
        names = sorted({_checked_name(name) for name in index["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{indices[0]} lists no shards; fetch the file again") from error
    except ValueError as error:
        raise CheckpointError(
            f"{indices[0]} leads out of its folder; fetch the model again"
        ) from error
    return [folder / name for name in names]


def _checked_name(name: Any) -> str:
    """A file's name that leads nowhere else, and has no sign that no name has."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no file's name")
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        raise ValueError(name)
    return name
