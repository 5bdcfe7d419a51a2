"""Which parts and LoRAs of a model to load, from where, in which number type; needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rectiflow.base.errors import ConfigError

MAX_T5_TOKENS = 512
#: Fields that say where a part lies which a model comes without.
PLACES = ("autoencoder", "text_encoders", "tokenizers")
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What to say beside a model's path; the defaults suit a folder that holds everything.

    Raises:
        ConfigError: an unknown precision, tokens of T5 out of range, or none while T5 is asked for.
    """

    autoencoder: Path | None = None
    """A file or folder with the autoencoder, for a model that comes without."""
    text_encoders: Path | None = None
    """A file or folder with the text encoders, for a model that comes without."""
    tokenizers: Path | None = None
    """A folder with `tokenizer`, `tokenizer_2` and `tokenizer_3`, for one that comes without."""
    encoders: tuple[str, ...] | None = None
    """The text encoders to use, out of clip_l, clip_g and t5; None means all that are there."""
    t5_tokens: int | None = None
    """Tokens that T5 reads and gives, 256 unless said. Where T5 is not used: how many zeros stand
    for it, none unless said."""
    precision: Precision | str = "auto"
    """What backbone and encoders are held and multiplied in; "auto" is bf16 on hardware that has
    it, else fp32. A model of ours is held in fp32 either way."""
    device: str | None = None
    """Where to compute, such as "cuda"; None is the CPU, and for a replay what then drew, if it is
    here."""
    offload_modulation: bool = False
    """Leave a third of an MM-DiT's weights in a file, which a drawing reads once, before its first
    step (`models.offloading`)."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"precision={self.precision!r} must be one of {', '.join(get_args(Precision))}"
            )
        tokens = self.t5_tokens
        if tokens is None:
            return
        if not 0 <= tokens <= MAX_T5_TOKENS:
            raise ConfigError(
                f"t5_tokens={tokens} must be from 0 to {MAX_T5_TOKENS}; 256 is usual, and 77"
            )
        if tokens == 0 and (self.encoders is None or "t5" in self.encoders):
            raise ConfigError(
                "t5_tokens=0 leaves T5 nothing to read; leave t5 out of encoders as well"
            )


@dataclass(frozen=True, kw_only=True)
class LoadedParts:
    """What a model was put together from, where its weights alone do not say: stands in pictures.

    `text_sha256` is over encoders, tokenizers and lengths. `t5_tokens` is None where the model
    itself decides. `precision` is what `LoadSettings` came to: "auto" only for a model of ours.
    """

    encoders: tuple[str, ...]
    t5_tokens: int | None
    precision: str
    text_sha256: str
    autoencoder_sha256: str

    def settings(self, places: LoadSettings) -> LoadSettings:
        """What loads the same again, from `places`."""
        return replace(
            places, encoders=self.encoders, t5_tokens=self.t5_tokens, precision=self.precision
        )


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA's file, and how strongly it is added: 1 as trained, 0 not at all, negative allowed.

    Raises:
        ConfigError: the weight is not finite.
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ConfigError(
                f"the weight of {self.path} is {self.weight}; give a finite number, 1 as trained"
            )

    @staticmethod
    def parse(text: str) -> LoraFile:
        """FILE or FILE:WEIGHT. A text that is a file's whole name is that file, colons and all."""
        name, colon, weight = text.rpartition(":")
        if colon and name and not Path(text).exists():
            try:
                return LoraFile(path=Path(name), weight=float(weight))
            except ValueError:  # no weight: a file that is not there, which reading it says
                pass
        return LoraFile(path=Path(text))


@dataclass(frozen=True, kw_only=True)
class LoadedLora:
    """A LoRA that a model has in its weights: its file's name and hash, how strongly it was added.

    `sha256` is of the file, or over its hash and that of PEFT's config beside it.
    """

    name: str
    sha256: str
    weight: float
