"""A folder of captioned pictures encoded by the parts that ship: what `rectiflow encode` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rectiflow.data.encode import EncodeReport, encode_folder
from rectiflow.data.folder import list_folder
from rectiflow.models.shipped import load_autoencoder, load_conditioner

#: The side of the pictures that the shipped autoencoder and models were trained on.
RESOLUTION_PX = 64


def encode_with_shipped_parts(
    folder: Path | str,
    out: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode a folder into a latent store, or complete the store; `progress(done, total)`.

    Raises:
        UserError: the folder cannot be used or the store not be written.
        StoreError: the store was made by other encoders, or is damaged.
    """
    list_folder(folder)  # a misspelt folder is told before the encoders have loaded
    return encode_folder(
        folder,
        out,
        load_autoencoder(),
        load_conditioner(),
        resolution_px=RESOLUTION_PX,
        progress=progress,
    )
