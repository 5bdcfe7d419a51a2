"""A folder of captioned pictures encoded by the parts that ship: what `rectiflow encode` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rectiflow.data.buckets import buckets_for
from rectiflow.data.encode import EncodeReport, encode_folder
from rectiflow.data.folder import list_folder
from rectiflow.models.shipped import load_autoencoder, load_conditioner

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
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode a folder into a latent store, or complete the store; `progress(done, total)`.

    Pictures become squares of `resolution_px`, or, with aspect `ratios` such as "2:1", the nearest
    of their sizes of about the same area (`data.buckets`).

    Raises:
        UserError: the folder cannot be used or the store not be written; a resolution or ratio
            that makes no whole tokens.
        StoreError: the store was made by other encoders, or is damaged.
    """
    buckets = (
        buckets_for(ratios, resolution_px=resolution_px, multiple_px=TOKEN_PX) if ratios else ()
    )
    list_folder(folder)  # a misspelt folder is told before the encoders have loaded
    return encode_folder(
        folder,
        out,
        load_autoencoder(),
        load_conditioner(),
        resolution_px=resolution_px,
        buckets=buckets,
        progress=progress,
    )
