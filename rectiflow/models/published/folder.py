"""Folders of weights: diffusers pipelines, one component of them, split files, and our own models.

Each becomes a `Checkpoint` as a single file does; only headers and configs are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectiflow.base.errors import UserError
from rectiflow.models.model_folder import CARD_FILE, find_pipeline, is_own_model
from rectiflow.models.published.checkpoint import (
    PART_TITLES,
    SCHEDULER,
    Checkpoint,
    Part,
    open_file,
)
from rectiflow.models.published.components import (
    COMPONENTS,
    CONFIG_FILE,
    SCHEDULER_FILE,
    kind_of_component,
    open_component,
    read_object,
    refuse_other_pipeline,
)
from rectiflow.models.published.header import SUFFIX
from rectiflow.models.published.own import open_own_checkpoint
from rectiflow.models.text.conditioner import FOLDERS


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Recognise a safetensors file, a folder of weights, or a model of our own by path or name.

    Raises:
        UserError: it is missing or unreadable.
        CheckpointError: it is cut, damaged, of another format or family, or lacks tensors.
    """
    path = find_pipeline(path) or Path(path)
    if is_own_model(path):
        return open_own_checkpoint(path)
    if not path.is_dir():
        return open_file(path)
    refuse_other_pipeline(path)
    if (path / CONFIG_FILE).is_file():
        part = open_component(path, kind_of_component(path))
        return Checkpoint(path=path, parts={part.kind: part})
    parts = {
        kind: open_component(path / folder, kind)
        for kind, (folder, _) in COMPONENTS.items()
        if (path / folder).is_dir()
    }
    if not parts:
        return _open_split_files(path)
    scheduler = path / SCHEDULER / SCHEDULER_FILE
    return Checkpoint(
        path=path,
        parts=parts,
        tokenizers=path if has_tokenizers(path) else None,
        scheduler=read_object(scheduler) if scheduler.is_file() else None,
    )


def has_tokenizers(folder: Path) -> bool:
    """Whether a folder has a tokenizer of at least one text encoder, as pipelines do."""
    return any((folder / tokenizer).is_dir() for _, tokenizer in FOLDERS.values())


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
    schedulers: list[Mapping[str, Any]] = []
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
        if found.scheduler is not None:
            schedulers.append(found.scheduler)
    scheduler = next(iter(schedulers), None)
    return Checkpoint(path=folder, parts=parts, unknown=tuple(unknown), scheduler=scheduler)
