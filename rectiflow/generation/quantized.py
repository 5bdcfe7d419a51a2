"""A model whose blocks multiply in 8 bits, and which says how far that moves it.

Before the walk of a prompt, after LoRAs. Nothing of the model that is given changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from rectiflow.base.errors import ConfigError
from rectiflow.generation.model import Model, Quantization
from rectiflow.models.quantization import EightBits, quantize


def with_quantization(model: Model, kind: EightBits | str | None) -> Model:
    """The model in "int8" (CPU) or "fp8" (GPU); None leaves it as it is.

    Raises:
        ConfigError: there is no such kind, or the model's device does not multiply so.
    """
    if kind is None:
        return model
    known: tuple[EightBits, ...] = get_args(EightBits)
    for one in known:
        if kind == one:
            backbone, change = quantize(model.backbone, one)
            quantization = Quantization(kind=one, change=change)
            return replace(model, backbone=backbone, quantization=quantization)
    raise ConfigError(f"quantization {kind!r} must be one of {', '.join(known)}")
