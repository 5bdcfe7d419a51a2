"""A folder of captioned pictures encoded by the parts that ship: what `rectiflow encode` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rectiflow.base.errors import UserError
from rectiflow.data.buckets import buckets_for
from rectiflow.data.encode import EncodeReport, encode_folder
from rectiflow.data.folder import list_folder
from rectiflow.data.store_format import read_header
from rectiflow.models.precision import usable_device
from rectiflow.models.shipped import (
    load_autoencoder,
    load_conditioner,
    load_image_tower,
    load_prompt_encoder,
)

#: The side of the pictures that the shipped autoencoder and models were trained on.
RESOLUTION_PX = 64
#: The side of a token: the shipped autoencoder's factor of 8, by patches of 2×2.
TOKEN_PX = 16


def encode_with_shipped_parts(
    folder: Path | str,
    out: Path | str,
    *,
    resolution_px: int = RESOLUTION_PX,
    ratios: Sequence[str] = (),
    with_features: bool = False,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode a folder into a latent store, or complete the store; `progress(done, total)`.

    Pictures become squares of `resolution_px`, or, with aspect `ratios` such as "2:1", the nearest
    of their sizes of about the same area (`data.buckets`). `with_features` adds what the shipped
    image tower says of each picture's patches (`TrainRecipe.alignment`). `device` is where the
    parts compute, by default the CPU.

    Raises:
        UserError: the folder cannot be used or the store not be written; a resolution or ratio
            that makes no whole tokens; features of sizes that are no squares.
        ConfigError: the device is not here.
        StoreError: the store was made by other encoders, or is damaged.
    """
    # What can be told at once is told before the encoders have loaded.
    place = usable_device(device or "cpu")
    if resolution_px % TOKEN_PX:
        raise UserError(
            f"resolution_px is {resolution_px}; it must be a multiple of {TOKEN_PX}, the side of a "
            "token, for training to read the store"
        )
    buckets = (
        buckets_for(ratios, resolution_px=resolution_px, multiple_px=TOKEN_PX) if ratios else ()
    )
    listing = list_folder(folder)
    return encode_folder(
        listing,
        out,
        load_autoencoder().to(place),
        load_conditioner().to(place),
        resolution_px=resolution_px,
        buckets=buckets,
        image_encoder=load_image_tower().to(place) if with_features else None,
        progress=progress,
    )


def refuse_store_of_other_parts(store: Path) -> None:
    """Passes when the parts that ship have made a store, without loading the text encoders.

    A model is opened with those parts alone, so that one trained on another store is lost.

    Raises:
        StoreError: other parts have made it, or it is missing or unfinished.
        UserError, ConfigError: its header cannot be read.
    """
    header, text = read_header(store), load_prompt_encoder()
    header.check_made_by(autoencoder=load_autoencoder().fingerprint(), text=text.fingerprints())
