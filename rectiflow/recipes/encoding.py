"""A folder of captioned pictures encoded by frozen parts: what `rectiflow encode` does.

On the walk of a sample: the parts that ship, or those of a released model, make the store, which
notes where they are from; a run draws its sample pictures with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rectiflow.base.errors import UserError
from rectiflow.data.buckets import buckets_for
from rectiflow.data.encode import EncodeReport, encode_folder
from rectiflow.data.encoded_rows import PromptEncoder
from rectiflow.data.folder import list_folder
from rectiflow.data.store_format import read_header
from rectiflow.generation.frozen_parts import FrozenParts, parts_from, parts_of, shipped_parts
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.model import read_model_card
from rectiflow.models.model_folder import find_model_folder, is_own_model
from rectiflow.models.parts_source import PartsSource
from rectiflow.models.precision import usable_device
from rectiflow.models.shipped import load_image_tower
from rectiflow.models.text.cache import CachedConditioner

#: The side of the pictures that the shipped autoencoder and models were trained on.
RESOLUTION_PX = 64
#: The side of a token: the autoencoders' factor of 8, by patches of 2×2.
TOKEN_PX = 16


def encode_with_parts(
    folder: Path | str,
    out: Path | str,
    *,
    parts: str | Path | None = None,
    load: LoadSettings | None = None,
    resolution_px: int = RESOLUTION_PX,
    ratios: Sequence[str] = (),
    with_features: bool = False,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode a folder into a latent store, or complete the store; `progress(done, total)`.

    Pictures become squares of `resolution_px`, or, with aspect `ratios` such as "2:1", the nearest
    of their sizes of about the same area (`data.buckets`). `parts` is the model whose autoencoder
    and text encoders encode, whatever `load_model` takes, by default those that ship; `load` says
    where parts lie that it comes without, and on which device they compute. `with_features` adds
    what the shipped image tower says of each picture's patches (`TrainRecipe.alignment`).
    `num_workers` threads read and decode (`data.encode.encode_folder`).

    Raises:
        UserError: the folder or the parts cannot be used or the store not be written; a resolution
            or ratio that makes no whole tokens; features of sizes that are no squares.
        ConfigError: the device is not here.
        StoreError: the store was made by other encoders, or is damaged.
        CheckpointError: a file of the parts is cut, damaged or of another family.
    """
    # What can be told at once is told before the encoders have loaded.
    load = load or LoadSettings()
    place = usable_device(load.device or "cpu")
    if resolution_px % TOKEN_PX:
        raise UserError(
            f"resolution_px is {resolution_px}; it must be a multiple of {TOKEN_PX}, the side of a "
            "token, for training to read the store"
        )
    buckets = (
        buckets_for(ratios, resolution_px=resolution_px, multiple_px=TOKEN_PX) if ratios else ()
    )
    listing = list_folder(folder)
    found = (shipped_parts() if parts is None else parts_of(parts, load)).to(place)
    return encode_folder(
        listing,
        out,
        found.autoencoder,
        uncached(found.conditioner),
        resolution_px=resolution_px,
        buckets=buckets,
        image_encoder=load_image_tower().to(place) if with_features else None,
        parts=found.source,
        num_workers=num_workers,
        progress=progress,
    )


def parts_of_store(store: Path, *, moved_to: str | None = None) -> FrozenParts:
    """The parts that made a store; the text encoders are not loaded yet.

    `moved_to` is the model that has them, where they are no longer where they were.

    Raises:
        StoreError: other parts are there now, or the store is missing or unfinished.
        UserError: nothing is there; the store's header cannot be read, or it is of shipped parts
            and has nothing to move.
        ConfigError: the header is not one.
    """
    header = read_header(store)
    source = header.parts
    if moved_to is not None:
        if source is None:
            raise UserError(
                f"the store {store} was encoded by the parts that ship, which lie in the package; "
                "leave out --parts"
            )
        source = (
            read_model_card(find_model_folder(moved_to)).parts
            if is_own_model(moved_to)
            else PartsSource(
                model=moved_to,
                encoders=source.encoders,
                t5_tokens=source.t5_tokens,
                precision=source.precision,
            )
        )
    parts = parts_from(source, context_dim=header.text_columns["t5.context"].shape[-1])
    header.check_made_by(
        autoencoder=parts.autoencoder.fingerprint(), text=parts.conditioner.fingerprints()
    )
    return parts


def uncached(conditioner: Any) -> PromptEncoder:
    """Text encoders for a store: without a cache, where thousands of captions push out all else."""
    if isinstance(conditioner, CachedConditioner):
        return _Uncached(conditioner)
    assert isinstance(conditioner, PromptEncoder)
    return conditioner


class _Uncached:
    """The encoders behind a cache, which load when the first caption comes."""

    def __init__(self, cached: CachedConditioner) -> None:
        self._cached = cached

    def encode(self, prompts: Sequence[str]) -> Any:
        return self._cached.conditioner().encode(prompts)

    def truncations(self, prompt: str) -> list[tuple[str, str]]:
        return self._cached.truncations(prompt)

    def fingerprints(self) -> dict[str, str]:
        return self._cached.fingerprints()
