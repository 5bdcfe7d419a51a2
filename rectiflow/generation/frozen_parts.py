"""The frozen parts around a backbone: autoencoder and text encoders, shipped or from elsewhere.

Both walks need the same ones: pictures and captions are encoded by them, a run's sample pictures
and a finished model are drawn with them. A store and a model note where theirs came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rectiflow.base.errors import UserError
from rectiflow.generation.load_settings import PLACES, LoadedParts, LoadSettings
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.model_folder import is_own_model
from rectiflow.models.parts_source import PartsSource
from rectiflow.models.shipped import load_autoencoder, load_prompt_encoder
from rectiflow.models.text.cache import PromptEncoder
from rectiflow.models.text.encoded import ENCODERS


@dataclass(frozen=True, kw_only=True)
class FrozenParts:
    """Autoencoder and text encoders, and where they came from: `source` is None for shipped ones.

    `loaded` says what parts from elsewhere are.
    """

    autoencoder: Autoencoder
    conditioner: PromptEncoder
    source: PartsSource | None = None
    loaded: LoadedParts | None = None

    def to(self, device: torch.device | str) -> FrozenParts:
        """The same parts on another device; they themselves move."""
        return replace(
            self,
            autoencoder=self.autoencoder.to(device),
            conditioner=self.conditioner.to(device),
        )


def shipped_parts(encoders: Sequence[str] = ENCODERS) -> FrozenParts:
    """Those of the package, or of its text encoders some.

    Raises:
        UserError: an unknown encoder.
        CheckpointError: a file is missing or damaged.
    """
    return FrozenParts(autoencoder=load_autoencoder(), conditioner=load_prompt_encoder(encoders))


def parts_of(model: str | Path, settings: LoadSettings | None = None) -> FrozenParts:
    """The parts that a model is drawn with; its backbone is not loaded, and need not be there.

    `model` is whatever `load_model` takes; `settings` say where parts lie that it comes without,
    and which encoders to use, in which type.

    Raises:
        UserError: a part or the tokenizers are nowhere.
        CheckpointError: a file is cut, damaged or of another family.
    """
    settings = settings or LoadSettings()
    if is_own_model(model):
        # A model's card is read where models are loaded, which needs these parts.
        from rectiflow.generation.model import load_own_parts

        return load_own_parts(model, settings)
    return released_parts(model, settings)


def released_parts(
    model: str | Path, settings: LoadSettings, *, context_dim: int | None = None
) -> FrozenParts:
    """The parts of released files; raises as `parts_of`.

    `context_dim` is the width of what stands for T5 where it is not used; SD3's when None.
    """
    # Needs the public libraries of large encoders.
    from rectiflow.generation.released import load_released_parts
    from rectiflow.models.published.hub import find_released

    place = find_released(model)
    if place is None:
        raise UserError(
            f"there is no file or folder {model} to take autoencoder and text encoders from; if "
            "they have moved, say where they are (train --parts; else --text-encoders and "
            "--autoencoder)"
        )
    parts = load_released_parts(place, settings, context_dim=context_dim)
    if place != Path(model) and parts.source is not None:
        # Of the Hub, and found there again on any machine.
        parts = replace(parts, source=replace(parts.source, model=str(model)))
    return parts


def parts_from(
    source: PartsSource | None,
    *,
    places: LoadSettings | None = None,
    encoders: Sequence[str] | None = None,
    context_dim: int | None = None,
) -> FrozenParts:
    """The same parts once more, from where they were.

    Args:
        source: where; None for the shipped ones.
        places: where parts lie now that have moved; only its places count. Where the model itself
            is gone, whatever else is missing is looked for beside the text encoders.
        encoders: which text encoders to use instead; zeros stand for the others.
        context_dim: the width of T5's zeros.

    Raises:
        UserError: they are not there any more.
        CheckpointError: a file is cut, damaged or of another family.
    """
    if source is None:
        return shipped_parts(ENCODERS if encoders is None else encoders)
    settings = LoadSettings(
        encoders=source.encoders if encoders is None else tuple(encoders),
        t5_tokens=source.t5_tokens,
        precision=source.precision,
    )
    for name in PLACES:
        place = getattr(places, name, None) or getattr(source, name)
        settings = replace(settings, **{name: None if place is None else Path(place)})
    model: str | Path = source.model
    if settings.text_encoders is not None and not _is_there(model):
        model = settings.text_encoders
    return released_parts(model, settings, context_dim=context_dim)


def _is_there(model: str) -> bool:
    from rectiflow.models.published.hub import find_released

    try:
        return find_released(model) is not None
    except UserError:  # of the Hub, which does not give it
        return False
