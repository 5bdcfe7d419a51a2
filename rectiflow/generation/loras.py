"""A model with LoRAs in its weights, beside the same model without.

Before the walk of a prompt. Nothing of the model that is given changes: what a LoRA changes is
copied, all else is shared, so pictures may be drawn with either at the same time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from rectiflow.base.cache import cached_sha256
from rectiflow.base.errors import UserError
from rectiflow.generation.load_settings import LoadedLora, LoraFile
from rectiflow.generation.model import Model
from rectiflow.models.lora import Lora, merge, read_lora, sharing_copy, text_sizes
from rectiflow.models.lora.peft_config import config_beside
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published.text_configs import RELEASED_TEXT, TextSize
from rectiflow.models.text.cache import CachedConditioner, PromptEncoder
from rectiflow.models.text.conditioner import TextConditioner

_BACKBONE = "mmdit"


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedLora:
    """A LoRA as it was read, and what metadata say of it."""

    lora: Lora
    loaded: LoadedLora


def read_loras(model: Model, loras: Sequence[LoraFile | WeightedLora]) -> tuple[WeightedLora, ...]:
    """The LoRAs of files, for this model; those that are read already stay as they are.

    Raises:
        UserError: a file is missing, the model is no MM-DiT, has LoRAs already or is in 8 bits, or
            a LoRA changes a text encoder that the model comes without.
        CheckpointError: as `read_lora`.
    """
    _refuse_changed(model)
    config = model.backbone.config
    if not isinstance(config, MMDiTConfig):
        raise UserError(f"{model.name} is a {config.title}; LoRAs are read for MM-DiTs alone")
    sizes = _text_sizes(model.conditioner)
    found: list[WeightedLora] = []
    for file in loras:
        if isinstance(file, WeightedLora):
            found.append(file)
            continue
        lora = read_lora(file.path, config, text=sizes)
        absent = [part for part in _text_parts(lora) if part not in model.conditioner.tokenizers]
        if absent:
            raise UserError(
                f"{file.path} changes {', '.join(absent)}, which the model comes without; load it "
                "with all text encoders (--encoders), or use a LoRA of the backbone alone"
            )
        loaded = LoadedLora(name=file.path.name, sha256=hash_lora(file.path), weight=file.weight)
        found.append(WeightedLora(lora=lora, loaded=loaded))
    return tuple(found)


def with_loras(model: Model, loras: Sequence[LoraFile | WeightedLora]) -> Model:
    """The model with all LoRAs merged, rounded once; a weaker model beside it stays as it is.

    Raises:
        UserError: as `read_loras` and `merge`.
        CheckpointError: as `read_loras`.
    """
    if not loras:
        return model
    read = read_loras(model, loras)
    backbone = sharing_copy(model.backbone)
    merge(backbone, _only(read, (_BACKBONE,)))
    of_text = [one for one in read if one.loaded.weight and _text_parts(one.lora)]
    return replace(
        model,
        backbone=backbone,
        conditioner=_with_text(model.conditioner, of_text) if of_text else model.conditioner,
        loras=tuple(one.loaded for one in read),
    )


def hash_lora(path: Path) -> str:
    """Its file's SHA-256, which other tools name it by; over two where PEFT's config is beside it.

    Raises:
        UserError: the file is missing or unreadable.
    """
    sha256, beside = cached_sha256(path), config_beside(path)
    if beside is None:
        return sha256
    return hashlib.sha256(f"{sha256}{cached_sha256(beside)}".encode()).hexdigest()


def _refuse_changed(model: Model) -> None:
    if model.quantization is not None:
        raise UserError(
            f"{model.name} is held in {model.quantization.kind}, which LoRAs cannot be merged into;"
            " merge them before"
        )
    if model.loras:
        raise UserError(
            f"{model.name} has LoRAs in its weights already; merge all at once into the model "
            "without"
        )


def _text_parts(lora: Lora) -> tuple[str, ...]:
    return tuple(part for part in lora.parts if part != _BACKBONE)


def _only(loras: Sequence[WeightedLora], parts: tuple[str, ...]) -> list[tuple[Lora, float]]:
    """A stack for `merge` of these parts alone."""
    return [
        (one.lora.only(*parts), one.loaded.weight)
        for one in loras
        if any(part in one.lora.parts for part in parts)
    ]


def _text_sizes(conditioner: PromptEncoder) -> Mapping[str, TextSize]:
    if isinstance(conditioner, CachedConditioner):
        if conditioner.sizes is not None:
            return {**RELEASED_TEXT, **conditioner.sizes}
        conditioner = conditioner.conditioner()
    assert isinstance(conditioner, TextConditioner)
    return text_sizes(conditioner.encoders)


def _with_text(conditioner: PromptEncoder, loras: Sequence[WeightedLora]) -> PromptEncoder:
    parts = tuple(dict.fromkeys(part for one in loras for part in _text_parts(one.lora)))
    stack = _only(loras, parts)

    def change(plain: TextConditioner) -> TextConditioner:
        encoders = {
            name: sharing_copy(encoder) if name in parts else encoder
            for name, encoder in plain.encoders.items()
        }
        changed = TextConditioner(plain.config, encoders, plain.tokenizers)
        merge(nn.Module(), stack, encoders=changed.encoders)
        return changed

    if isinstance(conditioner, CachedConditioner):
        # What decides the states: these parts alone, by what they do and how strongly.
        how = json.dumps([[lora.sha256, weight] for lora, weight in stack])
        return conditioner.changed(how, change)
    assert isinstance(conditioner, TextConditioner)
    return change(conditioner)
