"""Models of ours as checkpoints: the backbone, and the frozen parts that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rectiflow.base.config import LATER, from_json
from rectiflow.base.errors import UserError
from rectiflow.base.files import read_json
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.layers.embeddings import position_grid
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.model_folder import CARD_FILE, check_model_weights, find_model_folder
from rectiflow.models.parts_source import PartsSource
from rectiflow.models.precision import DTYPES
from rectiflow.models.published.checkpoint import (
    Checkpoint,
    Part,
    part_of,
    recognise_part,
    scheduler_of,
)
from rectiflow.models.published.components import open_component
from rectiflow.models.published.header import read_safetensors
from rectiflow.models.published.stored import StoredTensor
from rectiflow.models.shipped import load_autoencoder, read_card, shipped_path
from rectiflow.models.text.conditioner import FOLDERS

#: What a released layout takes for granted of a model, by the card's names.
_RELEASED_FLOW = {"path": "RectifiedFlowPath", "prediction": "VelocityPrediction"}


@dataclass(frozen=True, kw_only=True)
class OwnCard:
    """What is read here of a model's `model.json`; the formulation and sampling as they stand."""

    backbone: BackboneConfig
    sha256: dict[str, str]
    formulation: dict[str, Any]
    autoencoder: dict[str, Any]
    text: dict[str, str]
    sampling: dict[str, Any]
    parts: PartsSource | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A model that `rectiflow train` exported: card and tensors, their hash checked."""

    folder: Path
    card: OwnCard
    tensors: dict[str, StoredTensor]


def open_own_model(name_or_path: Path | str) -> OwnModel:
    """Open a model of ours, whatever its backbone.

    Raises:
        UserError: there is none.
        CheckpointError: its weights are cut or damaged.
        ConfigError: its `model.json` lacks a key or holds a wrong one.
    """
    folder = find_model_folder(name_or_path)
    found = read_json(folder / CARD_FILE)
    wanted = [field.name for field in fields(OwnCard)]
    card = from_json(OwnCard, {name: found[name] for name in wanted if name in found})
    return OwnModel(
        folder=folder,
        card=card,
        tensors=read_safetensors(check_model_weights(folder, card.sha256)).tensors,
    )


def open_own_checkpoint(name_or_path: Path | str) -> Checkpoint:
    """A model of ours with all that it draws with, in Stability's layout, positions included.

    The frozen parts are there as far as they are still where they were, and the same.

    Raises:
        UserError: there is none, or no released layout for its backbone or its formulation.
        CheckpointError: its weights or an embedded part are cut or damaged.
    """
    own = open_own_model(name_or_path)
    config = own.card.backbone
    if not isinstance(config, MMDiTConfig):
        raise UserError(
            f"the model in {own.folder} is a {config.title}; only an MM-DiT has a released layout"
        )
    _refuse_other_flow(own)
    grid = position_grid(config.position_side, config.hidden_dim, base_side=config.base_side)
    tensors = own.tensors | {"pos_embed": StoredTensor.of(grid.flatten(0, 1)[None])}
    backbone = recognise_part("mmdit", "sai", own.folder, tensors, config=config)
    if own.card.parts is None:
        text = _text_encoders(own.card.text)
        parts, tokenizers = _autoencoder(own.card.autoencoder) | text, shipped_path("text")
    else:
        parts, tokenizers = _parts_from(own.card.parts, own.card)
    return Checkpoint(
        path=own.folder,
        parts={"mmdit": backbone} | parts,
        tokenizers=tokenizers if any(name in parts for name in FOLDERS) else None,
        scheduler=scheduler_of(own.card.sampling["shift"]),
    )


def _refuse_other_flow(own: OwnModel) -> None:
    for part, kind in _RELEASED_FLOW.items():
        if (found := own.card.formulation[part]["kind"]) != kind:
            raise UserError(
                f"the model in {own.folder} has {found} as its {part}; whoever reads a released "
                f"layout takes {kind} for granted and would draw noise"
            )


def _parts_from(source: PartsSource, card: OwnCard) -> tuple[dict[str, Part], Path | None]:
    """Those of its parts that are at their place, and their tokenizers' folder."""
    # They open models of ours too.
    from rectiflow.models.published.folder import open_checkpoint
    from rectiflow.models.published.loading import build_autoencoder
    from rectiflow.models.published.text_loading import find_text_encoders

    def at(place: str | None) -> Checkpoint | None:
        path = Path(place or source.model)
        return open_checkpoint(path) if path.exists() else None

    parts: dict[str, Part] = {}
    decoding = (checkpoint := at(source.autoencoder)) and checkpoint.parts.get("autoencoder")
    if decoding is not None:
        fingerprint = build_autoencoder(decoding).fingerprint()
        if fingerprint == card.autoencoder.get("fingerprint"):
            parts["autoencoder"] = decoding
    text, whole = at(source.text_encoders), at(None)
    folders = (source.tokenizers, text and text.tokenizers, whole and whole.tokenizers)
    tokenizers = next((Path(folder) for folder in folders if folder is not None), None)
    if text is None or tokenizers is None or not tokenizers.is_dir():
        return parts, None
    stored = find_text_encoders(
        text,
        tokenizers=tokenizers,
        encoders=[name for name in source.encoders if name in text.parts],
        t5_tokens=source.t5_tokens,
        dtype=DTYPES[source.precision],
    )
    known = stored.fingerprints()
    parts |= {n: part for n, part in stored.parts.items() if known[n] == card.text.get(n)}
    return parts, tokenizers


def _autoencoder(described: Mapping[str, Any]) -> dict[str, Part]:
    embedded = load_autoencoder()
    if embedded.fingerprint() != described.get("fingerprint"):
        return {}
    return {"autoencoder": part_of(embedded)}


def _text_encoders(fingerprints: Mapping[str, str]) -> dict[str, Part]:
    folder = shipped_path("text")
    known = read_card(folder).fingerprints or {}
    return {
        name: open_component(folder / place, name)
        for name, (place, _) in FOLDERS.items()
        if name in known and known[name] == fingerprints.get(name)
    }
