"""A model ready to draw: backbone, formulation, autoencoder and text encoders that belong together.

First stop on the walk of a prompt. The name of one that ships, a run's folder or a model folder
with `model.json` becomes a `Model`; files and encoders are checked by hash before they are used.
Released weights go through `generation.released`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from rectiflow.base.config import LATER, load_config
from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.flow import Formulation
from rectiflow.generation.frozen_parts import FrozenParts, parts_from
from rectiflow.generation.load_settings import LoadedLora, LoadedParts, LoadSettings
from rectiflow.generation.settings import CardSampling, SamplingSettings
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.frame import Backbone
from rectiflow.models.model_folder import (
    CARD_FILE,
    WEIGHTS_FILE,
    find_model_folder,
    is_own_model,
    read_model_weights,
)
from rectiflow.models.offloading import offload_modulation
from rectiflow.models.parts_source import PartsSource
from rectiflow.models.precision import compute_dtype, usable_device
from rectiflow.models.substitution import is_compiled
from rectiflow.models.text.cache import PromptEncoder
from rectiflow.models.text.encoded import ENCODERS

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """`model.json`: sizes, formulation, the encoders it was trained with, where it comes from.

    `sha256` maps files to their hash, `autoencoder` and `text` carry the parts' fingerprints;
    `parts` says where these parts were, None for those that ship.
    """

    format: int
    sha256: dict[str, str]
    backbone: BackboneConfig
    formulation: Formulation
    autoencoder: dict[str, Any]
    text: dict[str, str]
    world: str | None
    resolution_px: int
    sampling: CardSampling
    provenance: dict[str, Any]
    parts: PartsSource | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class WeakerModel:
    """What guidance needs of a second model; autoencoder and text encoders are the first one's."""

    name: str
    digest: str
    backbone: Backbone
    formulation: Formulation

    def to(self, device: torch.device | str) -> WeakerModel:
        return replace(self, backbone=self.backbone.to(device))


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """In which 8 bits a backbone multiplies, and by which share of itself that moves its output."""

    kind: str
    change: float

    def __str__(self) -> str:
        return f"{self.kind} moves the backbone's output by {self.change:.2%}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """All that turns prompts into pictures; `settings` are its defaults.

    `digest` identifies the weights; `world` names the embedded world it was trained on, if any;
    `weaker` is the model that its guidance contrasts with, if it does with one; `source` says where
    autoencoder and text encoders are from, None for those that ship, and `parts` what
    it was put together from, unless it is as it was trained; `loras` are in its weights
    (`generation.loras`), and `digest` is that of the weights without; `quantization` says whether
    it multiplies in 8 bits (`generation.quantized`). With `uses_autocast`, float32 weights are
    multiplied in bfloat16 on hardware that has it; without, as they are held.
    """

    name: str
    digest: str
    backbone: Backbone
    formulation: Formulation
    autoencoder: Autoencoder
    conditioner: PromptEncoder
    settings: SamplingSettings
    world: str | None
    resolution_px: int
    provenance: dict[str, Any]
    weaker: WeakerModel | Model | None = None
    source: PartsSource | None = None
    parts: LoadedParts | None = None
    loras: tuple[LoadedLora, ...] = ()
    quantization: Quantization | None = None
    uses_autocast: bool = True

    @property
    def product_dtype(self) -> torch.dtype:
        """What its matrix products run in."""
        if self.uses_autocast:
            return compute_dtype("auto", self.device)
        return self.backbone.compute_dtype

    @property
    def is_compiled(self) -> bool:
        """Whether its blocks run as compiled graphs (`generation.changes`)."""
        return is_compiled(self.backbone)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """The same model with every part on another device (the parts themselves move)."""
        return replace(
            self,
            backbone=self.backbone.to(device),
            autoencoder=self.autoencoder.to(device),
            conditioner=self.conditioner.to(device),
            weaker=self.weaker and self.weaker.to(device),
        )


def load_model(name_or_path: str | Path, settings: LoadSettings | None = None) -> Model:
    """Load a shipped model by name, one from a run's or a model's folder, or released weights.

    Released weights are a file or folder that `rectiflow inspect` knows, or a name on the Hugging
    Face Hub. `settings` say where the parts lie that they come without.

    Raises:
        UserError: there is no such model, a part of it is nowhere, or it was trained with other
            encoders than these.
        CheckpointError: its files are missing, cut, damaged or of another size.
        ConfigError: its `model.json` is not one, or the device is not here.
    """
    settings = settings or LoadSettings()
    device = usable_device(settings.device or "cpu")
    path = _released_path(name_or_path)
    if path is not None:
        from rectiflow.generation.released import load_released

        model = replace(load_released(path, settings), name=str(name_or_path))
        if path != Path(name_or_path) and model.source is not None:
            model = replace(model, source=replace(model.source, model=model.name))
    else:
        model = _load_own_model(name_or_path, settings)
    if settings.offload_modulation:
        model = replace(model, backbone=offload_modulation(model.backbone))
    return model.to(device)


def _released_path(name_or_path: str | Path) -> Path | None:
    """Where the released weights of that name lie, fetched if need be; None for a model of ours."""
    if is_own_model(name_or_path):
        return None
    # Needs the public libraries of large encoders.
    from rectiflow.models.published.hub import find_released

    return find_released(name_or_path)


def _load_own_model(name_or_path: str | Path, settings: LoadSettings) -> Model:
    folder = find_model_folder(name_or_path)
    card = read_model_card(folder)
    _refuse_foreign_parts(name_or_path, card, settings)
    backbone = _load_backbone(folder, card)
    found = _load_own_parts(folder, card, settings)
    trained_with = tuple(name for name in ENCODERS if name in card.text)
    encoders = trained_with if settings.encoders is None else settings.encoders
    is_as_trained = encoders == trained_with and settings.precision == "auto"
    return Model(
        name=str(name_or_path),
        digest=card.sha256[WEIGHTS_FILE],
        backbone=backbone,
        formulation=card.formulation,
        autoencoder=found.autoencoder.eval().requires_grad_(False),
        conditioner=found.conditioner,
        settings=SamplingSettings(
            **vars(card.sampling), height_px=card.resolution_px, width_px=card.resolution_px
        ),
        world=card.world,
        resolution_px=card.resolution_px,
        provenance=card.provenance,
        parts=None if is_as_trained else _own_parts(encoders, str(settings.precision), card),
        source=found.source,
        uses_autocast=settings.precision == "auto",
    )


def load_own_parts(name_or_path: str | Path, settings: LoadSettings) -> FrozenParts:
    """The frozen parts of a model of ours, without its backbone.

    Raises:
        UserError: there is no such model, its parts are gone, or they are others now.
        ConfigError: its `model.json` is not one.
    """
    folder = find_model_folder(name_or_path)
    card = read_model_card(folder)
    _refuse_foreign_parts(name_or_path, card, settings)
    held_in = "fp32" if card.parts is None else card.parts.precision
    if settings.precision not in ("auto", held_in):
        raise ConfigError(
            f"precision={settings.precision} is not what the text encoders of {name_or_path} are "
            f"held in, which is {held_in}; leave it out"
        )
    return _load_own_parts(folder, card, settings)


def _load_own_parts(folder: Path, card: ModelCard, settings: LoadSettings) -> FrozenParts:
    found = parts_from(
        card.parts,
        places=settings,
        encoders=settings.encoders,
        context_dim=card.backbone.context_dim,
    )
    _refuse_other_parts(folder, card, found)
    return found


def _own_parts(encoders: tuple[str, ...], precision: str, card: ModelCard) -> LoadedParts:
    text = "".join(f"{name}:{card.text[name]};" for name in ENCODERS if name in encoders)
    return LoadedParts(
        encoders=encoders,
        t5_tokens=None,
        precision=precision,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        autoencoder_sha256=card.autoencoder["fingerprint"],
    )


def with_weaker(model: Model, settings: SamplingSettings) -> Model:
    """The model with the weaker one beside it that the settings' guidance names, if it names one.

    Raises:
        UserError: there is no such model, or its velocities mean something else.
    """
    name = settings.guidance.weaker_model
    if name is None or (model.weaker is not None and model.weaker.name == name):
        return model
    weaker = _load_weaker(name, model).to(model.device)
    ours, theirs = model.backbone.config, weaker.backbone.config
    if (model.formulation.path, model.formulation.prediction) != (
        weaker.formulation.path,
        weaker.formulation.prediction,
    ) or ours.latent_channels != theirs.latent_channels:
        raise UserError(
            f"{name} cannot guide {model.name}: it draws {theirs.latent_channels} channels by "
            f"{weaker.formulation}, not {ours.latent_channels} by {model.formulation}; name a "
            "model of the same path, prediction and autoencoder"
        )
    if (theirs.context_dim, theirs.pooled_dim) != (ours.context_dim, ours.pooled_dim):
        raise UserError(
            f"{name} cannot guide {model.name}: it reads text of {theirs.context_dim} and "
            f"{theirs.pooled_dim} numbers, not of {ours.context_dim} and {ours.pooled_dim}; name a "
            "model of the same text encoders"
        )
    return replace(model, weaker=weaker)


def _load_weaker(name: str, model: Model) -> WeakerModel:
    path = _released_path(name)
    if path is None:
        folder = find_model_folder(name)
        card = read_model_card(folder)
        if card.autoencoder.get("fingerprint") != model.autoencoder.fingerprint():
            raise UserError(
                f"{name} cannot guide {model.name}: it draws the latents of another autoencoder; "
                "name a model that was trained on the same"
            )
        _refuse_other_text(name, card, model)
        return WeakerModel(
            name=name,
            digest=card.sha256[WEIGHTS_FILE],
            backbone=_load_backbone(folder, card),
            formulation=card.formulation,
        )
    from rectiflow.generation.released import load_released_backbone

    # As the model's own.
    precision = "auto" if model.parts is None else model.parts.precision
    settings = LoadSettings(precision=precision, device=str(model.device))
    return replace(load_released_backbone(path, settings), name=name)


def _refuse_other_text(name: str, card: ModelCard, model: Model) -> None:
    """A weaker model is told the prompts by the model's own encoders."""
    if model.loras:
        # Of text encoders too, perhaps: their states are others on purpose.
        return
    for encoder, fingerprint in model.conditioner.fingerprints().items():
        if card.text.get(encoder) != fingerprint:
            how = "with another" if encoder in card.text else "without"
            raise UserError(
                f"{name} cannot guide {model.name}: it was trained {how} {encoder}; name a model "
                "of the same text encoders"
            )


def read_model_card(folder: Path) -> ModelCard:
    """A model folder's `model.json`.

    Raises:
        UserError: it cannot be read, or is of a format that this version does not know.
        ConfigError: it lacks a key or holds a wrong one.
    """
    card = load_config(folder / CARD_FILE, ModelCard)
    if card.format != FORMAT:
        raise UserError(
            f"{folder / CARD_FILE} has format {card.format}, this version reads format {FORMAT}; "
            "install the version of rectiflow that wrote it"
        )
    return card


def _load_backbone(folder: Path, card: ModelCard) -> Backbone:
    tensors = read_model_weights(folder, card.sha256)
    backbone = build_backbone(card.backbone)
    _refuse_other_shapes(folder / WEIGHTS_FILE, backbone, tensors)
    backbone.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return backbone.eval()


def _refuse_other_shapes(path: Path, backbone: Backbone, tensors: dict[str, torch.Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{path} is a checkpoint of another model than its {CARD_FILE} says (depth "
            f"{backbone.config.depth}): {name} is {found.get(name, 'missing')}, expected "
            f"{wanted.get(name, 'no such tensor')}; use the two files that belong together"
        )


def _refuse_foreign_parts(
    name_or_path: str | Path, card: ModelCard, settings: LoadSettings
) -> None:
    """A model of ours has its parts, of which some may have moved, and computes in float32."""
    usual = LoadSettings(
        encoders=settings.encoders,
        device=settings.device,
        offload_modulation=settings.offload_modulation,
    )
    if card.parts is not None:
        usual = replace(
            usual,
            autoencoder=settings.autoencoder,
            text_encoders=settings.text_encoders,
            tokenizers=settings.tokenizers,
        )
    for field_ in fields(settings):
        given = getattr(settings, field_.name)
        if given != getattr(usual, field_.name) and (field_.name, given) != ("precision", "fp32"):
            raise ConfigError(
                f"{field_.name}={given} is for released weights; {name_or_path} is a model of ours "
                "and has its own"
            )


def _refuse_other_parts(folder: Path, card: ModelCard, parts: FrozenParts) -> None:
    """Latents and text states mean nothing to a backbone that was trained on others."""
    found = {"autoencoder": parts.autoencoder.fingerprint()} | parts.conditioner.fingerprints()
    wanted = {"autoencoder": card.autoencoder.get("fingerprint", "")} | card.text
    if extra := [name for name in parts.conditioner.tokenizers if name not in card.text]:
        raise UserError(
            f"the model in {folder} was trained without {', '.join(extra)}, and would not know "
            f"what it says; leave it out (--encoders {','.join(card.text) or 'none'})"
        )
    for part, fingerprint in wanted.items():
        if part in ENCODERS and part not in parts.conditioner.tokenizers:
            continue  # left out on purpose
        if found.get(part) != fingerprint:
            ours, remedy = "this rectiflow has", "use the version that trained it, or train again"
            if parts.source is not None:
                ours = f"there is in {parts.source.model}"
                remedy = "say where that one lies (--autoencoder, --text-encoders, --tokenizers)"
            raise UserError(
                f"the model in {folder} was trained with another {part} (fingerprint "
                f"{fingerprint[:12]}…) than {ours} ({found.get(part, 'none')[:12]}…); {remedy}"
            )
