"""Sources and masks of edits from files and from PIL pictures.

Pixels come by the rules of `data.pixels`, as training pictures do: upright, without a colour
profile, transparency over white. A mask of colours counts as grey.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.base.files import explain_os_error
from rectiflow.data.image_header import read_image_header
from rectiflow.data.pixels import UndecodableError, decode_picture, to_rgb
from rectiflow.generation.editing import STRENGTH, Edit

#: A picture as Pillow has it, or its pixels.
Picture = Image.Image | NDArray[Any]


def read_edit(
    image: Path | str,
    mask: Path | str | None = None,
    *,
    strength: float = STRENGTH,
    keep_source: bool = True,
) -> Edit:
    """The edit of a picture's file, under the mask of another, if there is one.

    Raises:
        UserError: a file is missing or is no picture, or the two differ in size.
        ConfigError: the strength is out of range, or the mask empty.
    """
    source = read_source(image)
    weights = None if mask is None else read_mask(mask)
    if weights is not None and weights.shape != source.shape[:2]:
        raise UserError(
            f"the mask {mask} is {_size(weights)}, the picture {image} {_size(source)}; give a "
            "mask of the picture's size"
        )
    return Edit(
        source=source,
        strength=strength,
        mask=weights,
        keep_source=keep_source,
        source_name=Path(image).name,
        mask_name="" if mask is None else Path(mask).name,
    )


# What is given is checked below, in use too.
def edit_of(image: Any, mask: Any = None, *, strength: float = STRENGTH) -> Edit:
    """The edit of a picture in memory, from PIL or as bytes [h w 3], under a mask, PIL or [h w].

    Raises:
        UserError: a picture of Pillow's is of a kind that has no colours to go by.
        ConfigError: there is not one picture; or sizes, types, ranges or the strength are wrong.
    """
    for name, given in (("image", image), ("mask_image", mask)):
        if not isinstance(given, Image.Image | np.ndarray | None):
            raise ConfigError(
                f"{name} is a {type(given).__name__}; give one picture, of PIL or as an array"
            )
    return Edit(
        source=_pixels(image) if isinstance(image, Image.Image) else image,
        strength=strength,
        mask=_grey(_pixels(mask)) if isinstance(mask, Image.Image) else mask,
        source_name=_name(image),
        mask_name=_name(mask),
    )


def read_source(path: Path | str) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a PNG, JPEG or WebP file.

    Raises:
        UserError: it is missing, or is none of these, whole.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    header = read_image_header(data)
    if header is None:
        raise UserError(f"{path} is no picture; give a PNG, JPEG or WebP file")
    try:
        return decode_picture(data, size_px=(header.height_px, header.width_px))
    except UndecodableError as error:
        raise UserError(f"{path} cannot be used: {error}; save the picture again") from error


def read_mask(path: Path | str) -> UInt8[np.ndarray, "h w"]:
    """A mask's file, white where to paint.

    Raises:
        UserError: as `read_source`.
    """
    return _grey(read_source(path))


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return to_rgb(image)
    except UndecodableError as error:
        raise UserError(f"the picture cannot be used: {error}; convert it to RGB") from error


def _grey(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    return np.array(Image.fromarray(pixels).convert("L"))


def _name(picture: Any) -> str:
    """Of the file that Pillow opened, if it did."""
    path = getattr(picture, "filename", "")
    return Path(path).name if isinstance(path, str | Path) else ""


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]} px"
