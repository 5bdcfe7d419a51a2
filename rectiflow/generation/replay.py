"""A picture drawn once more from what its file says, and compared: `rectiflow sample --replay`."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from rectiflow.base.config import from_json
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.load_settings import LoadedLora, LoadedParts, LoadSettings
from rectiflow.generation.metadata import (
    DrawingEnvironment,
    ModelReference,
    PictureMetadata,
    picture_metadata,
)
from rectiflow.generation.model import Model, load_model, with_weaker
from rectiflow.generation.pictures import read_metadata, read_png
from rectiflow.generation.replay_files import ReplayFiles, find_edit, find_loras
from rectiflow.generation.text_to_image import generate


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A picture as its file has it, beside the same drawn anew; `str()` tells the outcome."""

    recorded: PictureMetadata
    redrawn: PictureMetadata
    recorded_image: UInt8[np.ndarray, "H W 3"]
    image: UInt8[np.ndarray, "h w 3"]

    @property
    def is_identical(self) -> bool:
        """Whether every pixel is the same."""
        return np.array_equal(self.recorded_image, self.image)

    @property
    def differences(self) -> list[str]:
        """What was otherwise when the picture was drawn, whether or not it shows."""
        then, now = self.recorded, self.redrawn
        lines = [
            *_compare_models("model", then.model, now.model),
            *_compare_models("weaker model", then.weaker, now.weaker),
            *_compare_loras(then.loras, now.loras),
            *_compare("quantization", then.quantization, now.quantization),
            *_compare("compiled", then.is_compiled, now.is_compiled),
        ]
        lines += _compare("rectiflow", then.rectiflow, now.rectiflow)
        lines += _compare_parts(then.parts, now.parts)
        return lines + _compare_environments(then.environment, now.environment)

    @property
    def pixels(self) -> str:
        """How far the pixels are from each other."""
        if self.recorded_image.shape != self.image.shape:
            (old_h, old_w, _), (h, w, _) = self.recorded_image.shape, self.image.shape
            return f"pixels: the file has {old_w}×{old_h} of them, its settings make {w}×{h}"
        apart = np.abs(self.recorded_image.astype(int) - self.image.astype(int)).max(axis=2)
        share = np.count_nonzero(apart) / apart.size
        return f"pixels: {share:.2%} differ, by at most {apart.max()} of 255"

    def __str__(self) -> str:
        if self.is_identical:
            return "\n  ".join(["identical", *self.differences])
        causes = self.differences or [
            "nothing that the file records differs: it was changed since, or drawn on another "
            "processor"
        ]
        return "\n  ".join(["differs", self.pixels, *causes])


def replay(
    path: Path | str,
    *,
    model: Model | str | Path | None = None,
    places: LoadSettings | None = None,
    files: ReplayFiles | None = None,
) -> Replay:
    """Draw a picture again from its metadata, on as many threads, and compare.

    `model` replaces the one that is recorded by name; if it has other weights, the result says so.
    `places` say where the parts of a model lie that it comes without; which of them to use, and
    in which number type, the picture says, and where to compute if they do not. `files` say where
    the picture, mask and LoRAs lie that it was drawn from, if neither beside it nor in the current
    folder; they must be those of then.
    A `Model` that has LoRAs in its weights already is taken as it is.

    Raises:
        UserError: the file is no picture of ours, was made by what this version cannot repeat, or
            its model, or a file that it was drawn from, is not to be found, or another.
    """
    path, recorded, image = Path(path), _read(path), read_png(path)
    files = files or ReplayFiles()
    places = _where_it_was_drawn(places or LoadSettings(), recorded.environment)
    edit = find_edit(path, recorded, files)
    has_loras = isinstance(model, Model) and bool(model.loras)
    loras = () if has_loras else find_loras(path, recorded, files)
    settings = places if recorded.parts is None else recorded.parts.settings(places)
    if model is None:
        loaded = _load(recorded.model.name, path, settings)
    else:
        loaded = model if isinstance(model, Model) else load_model(model, settings)
    loaded = with_weaker(loaded, recorded.settings)
    loaded = ModelChanges(
        loras=loras,
        quantization=None if loaded.quantization is not None else recorded.quantization,
        is_compiled=recorded.is_compiled and not loaded.is_compiled,
    ).of(loaded)
    with _threads(recorded.environment, loaded.device):
        redrawn = picture_metadata(
            loaded,
            recorded.prompt,
            recorded.seed,
            recorded.settings,
            negative_prompt=recorded.negative_prompt,
            edit=edit,
            variation=recorded.variation,
        )
        evaluations: list[int] = []
        (again,) = generate(
            loaded,
            [recorded.prompt],
            [recorded.seed],
            recorded.settings,
            negative_prompts=[recorded.negative_prompt],
            edit=edit,
            variations=None if recorded.variation is None else [recorded.variation],
            on_evaluated=evaluations.append,
        )
    redrawn = redrawn.evaluated(evaluations[-1])
    return Replay(recorded=recorded, redrawn=redrawn, recorded_image=image, image=again)


def _read(path: Path | str) -> PictureMetadata:
    try:
        return from_json(PictureMetadata, read_metadata(path))
    except ConfigError as error:
        raise UserError(
            f"{path} cannot be drawn again from its metadata ({error}); use the version of "
            "rectiflow that drew it"
        ) from error


def _where_it_was_drawn(
    places: LoadSettings, environment: DrawingEnvironment | None
) -> LoadSettings:
    """The places, with the device that drew it if they name none and it is here."""
    was_cuda = environment is not None and environment.device == "cuda"
    if places.device is None and was_cuda and torch.cuda.is_available():
        return replace(places, device="cuda")
    return places


def _load(name: str, path: Path | str, settings: LoadSettings) -> Model:
    try:
        return load_model(name, settings)
    except UserError as error:
        raise UserError(
            f"{path} was drawn by the model {name!r}, which cannot be had by that name: {error}; "
            "or name where it lies now, with --model"
        ) from error


@contextmanager
def _threads(environment: DrawingEnvironment | None, device: torch.device) -> Generator[None]:
    """As many threads as were used, if this machine has them: their number changes last bits."""
    before, wanted = torch.get_num_threads(), environment and environment.threads
    if device.type == "cuda" or not wanted or not 1 <= wanted <= (os.cpu_count() or 1):
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(what: str, then: object, now: object) -> list[str]:
    return [] if then == now else [f"{what}: {then} then, {now} now"]


def _compare_fields(
    then: LoadedParts | DrawingEnvironment, now: LoadedParts | DrawingEnvironment
) -> list[str]:
    return [
        line
        for field in fields(then)
        for line in _compare(field.name, getattr(then, field.name), getattr(now, field.name))
    ]


def _compare_models(
    what: str, then: ModelReference | None, now: ModelReference | None
) -> list[str]:
    if (then and then.sha256) == (now and now.sha256):
        return []
    old, new = (
        f"{each.name} (SHA-256 {each.sha256[:12]}…)" if each else "none" for each in (then, now)
    )
    return [f"{what}: {old} then, {new} now"]


def _compare_loras(then: Sequence[LoadedLora], now: Sequence[LoadedLora]) -> list[str]:
    old, new = ([(lora.sha256, lora.weight) for lora in each] for each in (then, now))
    if old == new:
        return []
    told = (
        ", ".join(f"{o.name} by {o.weight:g} (SHA-256 {o.sha256[:12]}…)" for o in each) or "none"
        for each in (then, now)
    )
    return ["LoRAs: {} then, {} now".format(*told)]


def _compare_parts(then: LoadedParts | None, now: LoadedParts | None) -> list[str]:
    if then is None or now is None:
        old, new = ("as trained" if each is None else "put together" for each in (then, now))
        return [] if then == now else [f"parts: {old} then, {new} now"]
    return _compare_fields(then, now)


def _compare_environments(
    then: DrawingEnvironment | None, now: DrawingEnvironment | None
) -> list[str]:
    if then is None or now is None:
        return ["environment: the file does not say where it was drawn"] if then is None else []
    return _compare_fields(then, now)
