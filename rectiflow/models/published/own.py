"""Models of ours as checkpoints: the backbone, and the frozen parts that it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rectiflow.base.config import LATER, from_json
from rectiflow.base.errors import CheckpointError, ConfigError, UserError
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
from rectiflow.models.published.components import open_component, read_object
from rectiflow.models.published.header import read_safetensors
from rectiflow.models.published.hub import find_released
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
        CheckpointError: its weights are cut or damaged, or its `model.json` is no object.
        ConfigError: its `model.json` lacks a key or holds a wrong one.
    """
    folder = find_model_folder(name_or_path)
    found = read_object(folder / CARD_FILE)
    wanted = [field.name for field in fields(OwnCard)]
    try:
        card = from_json(OwnCard, {name: found[name] for name in wanted if name in found})
    except ConfigError as error:
        raise ConfigError(f"{folder / CARD_FILE}: {error}") from error
    return OwnModel(
        folder=folder,
        card=card,
        tensors=read_safetensors(check_model_weights(folder, card.sha256)).tensors,
    )


def open_own_checkpoint(name_or_path: Path | str) -> Checkpoint:
    """A model of ours with all that it draws with, in Stability's layout, positions included.

    The frozen parts are there as far as they are still where they were, and the same; `missing`
    says why others are not.

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
    source = own.card.parts
    found = _shipped_parts(own.card) if source is None else _parts_from(source, own.card)
    return Checkpoint(
        path=own.folder,
        parts={"mmdit": backbone} | found.parts,
        tokenizers=found.tokenizers if any(name in found.parts for name in FOLDERS) else None,
        scheduler=scheduler_of(_shift_of(own)),
        missing=found.missing,
    )


def _refuse_other_flow(own: OwnModel) -> None:
    for part, kind in _RELEASED_FLOW.items():
        described = own.card.formulation.get(part)
        found = described.get("kind") if isinstance(described, dict) else None
        if not isinstance(found, str):
            raise CheckpointError(
                f"{own.folder / CARD_FILE} does not say which {part} its formulation has; export "
                "or fetch the model again"
            )
        if found != kind:
            raise UserError(
                f"the model in {own.folder} has {found} as its {part}; whoever reads a released "
                f"layout takes {kind} for granted and would draw noise"
            )


def _shift_of(own: OwnModel) -> float:
    shift = own.card.sampling.get("shift")
    if isinstance(shift, bool) or not isinstance(shift, int | float) or shift <= 0:
        raise CheckpointError(
            f"{own.folder / CARD_FILE} has {shift!r:.40} as sampling.shift, no positive number; "
            "export or fetch the model again"
        )
    return shift


@dataclass(kw_only=True)
class _Found:
    """The frozen parts that were found, the folder of their tokenizers, and why some were not."""

    parts: dict[str, Part] = field(default_factory=dict[str, Part])
    tokenizers: Path | None = None
    missing: dict[str, str] = field(default_factory=dict[str, str])

    def take(self, kind: str, part: Part, fingerprint: str, wanted: str | None, where: str) -> None:
        """A part, if it is the one that the model was trained with."""
        if fingerprint == wanted:
            self.parts[kind] = part
        else:
            self.missing[kind] = f"the model was trained with another than {where}"


def _shipped_parts(card: OwnCard) -> _Found:
    found, where = _Found(tokenizers=shipped_path("text")), "ships with this version"
    embedded, folder = load_autoencoder(), shipped_path("text")
    wanted = card.autoencoder.get("fingerprint")
    found.take("autoencoder", part_of(embedded), embedded.fingerprint(), wanted, where)
    known = read_card(folder).fingerprints or {}
    for name, (place, _) in FOLDERS.items():
        if name in card.text:
            part = open_component(folder / place, name)
            found.take(name, part, known.get(name, ""), card.text[name], where)
    return found


def _parts_from(source: PartsSource, card: OwnCard) -> _Found:
    """The parts that are at their place; those of the Hub are downloaded if need be."""
    # They open models of ours too.
    from rectiflow.models.published.folder import open_checkpoint
    from rectiflow.models.published.loading import build_autoencoder
    from rectiflow.models.published.text_loading import find_text_encoders

    def at(place: str | None) -> Checkpoint:
        path = find_released(place or source.model)
        if path is None:
            raise UserError(f"there is no file or folder {place or source.model}")
        return open_checkpoint(path)

    found, where = _Found(), f"there is in {source.model}"
    try:
        decoding = at(source.autoencoder).part("autoencoder")
        fingerprint = build_autoencoder(decoding).fingerprint()
        wanted = card.autoencoder.get("fingerprint")
        found.take("autoencoder", decoding, fingerprint, wanted, where)
    except UserError as error:
        found.missing["autoencoder"] = str(error)
    try:
        text = at(source.text_encoders)
        tokenizers = source.tokenizers or text.tokenizers or at(None).tokenizers
        found.tokenizers = None if tokenizers is None else Path(tokenizers)
        stored = find_text_encoders(
            text,
            tokenizers=tokenizers,
            encoders=source.encoders,
            t5_tokens=source.t5_tokens,
            dtype=DTYPES[source.precision],
            context_dim=card.backbone.context_dim,
        )
        known = stored.fingerprints()
        for name, part in stored.parts.items():
            found.take(name, part, known[name], card.text.get(name), where)
    except UserError as error:
        found.missing |= dict.fromkeys(source.encoders, str(error))
    return found
