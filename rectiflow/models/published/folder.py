"""Folders of weights: diffusers pipelines, one component of them, split files, and our own models.

Each becomes a `Checkpoint` as a single file does; only headers and configs are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rectiflow.base.config import from_json
from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import read_json
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.layers.embeddings import position_grid
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.model_folder import (
    CARD_FILE,
    check_model_weights,
    find_model_folder,
    find_pipeline,
    is_own_model,
)
from rectiflow.models.published.checkpoint import (
    PART_TITLES,
    Checkpoint,
    Part,
    open_file,
    recognise_part,
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
#: In the metadata of weights: tensors that are the identity and stand for none.
IDENTITY_KEY = "rectiflow.identity"
CONFIG_FILE = "config.json"
_KINDS = {"SD3Transformer2DModel": "mmdit", "AutoencoderKL": "autoencoder"}


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Recognise a safetensors file, a folder of weights, or a model of our own by path or name.

    Raises:
        UserError: it is missing or unreadable.
        CheckpointError: it is cut, damaged, of another format or family, or lacks tensors.
    """
    path = find_pipeline(path) or Path(path)
    if is_own_model(path):
        return _own_checkpoint(path)
    if not path.is_dir():
        return open_file(path)
    if (path / CONFIG_FILE).is_file():
        part = _open_component(path, *_component_of(path))
        return Checkpoint(path=path, parts={part.kind: part})
    parts = {
        kind: _open_component(path / folder, kind, stem)
        for kind, (folder, stem) in COMPONENTS.items()
        if (path / folder).is_dir()
    }
    return Checkpoint(path=path, parts=parts) if parts else _open_split_files(path)


def _component_of(folder: Path) -> tuple[str, str]:
    """The kind of a lone component and the name of its weights, from its config."""
    name = _read_config(folder).get("_class_name")
    if name not in _KINDS:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes {name or 'no class of diffusers'}; rectiflow knows "
            f"{' and '.join(_KINDS)}"
        )
    return _KINDS[name], COMPONENTS[_KINDS[name]][1]


def _open_component(folder: Path, kind: str, stem: str) -> Part:
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder, stem):
        found = read_safetensors(file)
        tensors |= found.tensors
        for name in found.metadata.get(IDENTITY_KEY, "").split():
            tensors.pop(name, None)
    return recognise_part(kind, "diffusers", folder, tensors, given=_read_config(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    data = read_json(path) if path.is_file() else {}
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


def _open_split_files(folder: Path) -> Checkpoint:
    """Every safetensors file of a folder, each with parts of its own."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise UserError(
            f"{folder} holds no weights: neither {SUFFIX} files, nor the folders "
            f"{', '.join(name for name, _ in COMPONENTS.values())} of a diffusers pipeline, nor "
            f"our {CARD_FILE}; give a folder that does, or a file"
        )
    parts: dict[str, Part] = {}
    unknown: list[str] = []
    for file in files:
        found = open_file(file)
        for kind, part in found.parts.items():
            if kind in parts:
                raise UserError(
                    f"both {parts[kind].path} and {file} hold the {PART_TITLES[kind]}; give one of "
                    "the files, or remove the other"
                )
            parts[kind] = part
        unknown += found.unknown
    return Checkpoint(path=folder, parts=parts, unknown=tuple(unknown))


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A model that `rectiflow train` exported: its backbone's config and tensors, hash checked."""

    folder: Path
    backbone: BackboneConfig
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class _Card:
    """What `model.json` says of the backbone."""

    backbone: BackboneConfig


def open_own_model(name_or_path: Path | str) -> OwnModel:
    """Open a model of ours, whatever its backbone.

    Raises:
        UserError: there is none.
        CheckpointError: its weights are cut or damaged.
    """
    folder = find_model_folder(name_or_path)
    card = read_json(folder / CARD_FILE)
    return OwnModel(
        folder=folder,
        backbone=from_json(_Card, {"backbone": card["backbone"]}).backbone,
        tensors=read_safetensors(check_model_weights(folder, card["sha256"])).tensors,
    )


def _own_checkpoint(path: Path) -> Checkpoint:
    """An MM-DiT of ours, its positions in closed form, as a part in Stability's layout."""
    own = open_own_model(path)
    config = own.backbone
    if not isinstance(config, MMDiTConfig):
        raise UserError(
            f"the model in {own.folder} is a {config.title}; only an MM-DiT has a released layout"
        )
    grid = position_grid(config.position_side, config.hidden_dim, base_side=config.base_side)
    tensors = own.tensors | {"pos_embed": StoredTensor.of(grid.flatten(0, 1)[None])}
    part = recognise_part("mmdit", "sai", own.folder, tensors, config=config)
    return Checkpoint(path=own.folder, parts={"mmdit": part})
