"""Picture files to sRGB pixels by stated rules, and the crop at the training size.

The rules, in order:

* **Orientation**: the EXIF orientation is applied.
* **16 bits**: the high byte of each value is kept.
* **Palette, grey, bilevel**: expanded to three channels.
* **Transparency**, full or by key colour: the picture is laid over white. A key colour among three
  channels of 16 bits is refused, since the decoder keeps the high bytes alone.
* **CMYK**: converted without a colour profile, as Pillow does. No embedded profile is applied to
  any picture: values are taken as sRGB.
* **Several frames**: refused, except for the main picture of a multi-picture JPEG.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
_WHITE = 255


class UndecodableError(Exception):
    """A picture that cannot be turned into pixels; the text is the reason."""


def decode_picture(data: bytes, *, size_px: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a PNG, JPEG or WebP file to upright sRGB pixels by the rules above.

    `size_px` is the (height, width) that the caller read from the header and allowed; the decoder
    must find the same.

    Raises:
        UndecodableError: not such a file, damaged, cut, animated, or of another size.
    """
    # Pillow would only warn; and what becomes of warnings is the same for all threads.
    limit, (height_px, width_px) = Image.MAX_IMAGE_PIXELS, size_px
    if limit is not None and height_px * width_px > limit:
        raise UndecodableError(
            f"it is too large ({width_px}×{height_px} px exceeds Pillow's limit of {limit} pixels)"
        )
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if (image.height, image.width) != size_px:
                raise UndecodableError(
                    f"the header says {size_px[1]}×{size_px[0]} px, the decoder "
                    f"{image.width}×{image.height} px"
                )
            num_frames = getattr(image, "n_frames", 1)
            if num_frames > 1 and image.format != "MPO":
                raise UndecodableError(f"it is an animation of {num_frames} frames")
            return to_rgb(image)
    except (UndecodableError, MemoryError):  # the latter says nothing of the picture
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableError(f"it is too large ({error})") from error
    except UnidentifiedImageError as error:
        # Pillow's text holds a memory address, and a reason is the same each time.
        raise UndecodableError("it is damaged or cut (no decoder recognises it)") from error
    except Exception as error:
        # Decoders answer hostile bytes with whatever their parsing runs into, not only OSError.
        raise UndecodableError(f"it is damaged or cut ({error})") from error


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A picture's pixels in sRGB, 0..255, by the rules above.

    Raises:
        UndecodableError: a pixel format that no PNG, JPEG or WebP file has, or a key colour that
            cannot be compared.
    """
    # Before the pixels are loaded, as only then the file's bit depth is known.
    key = _key_color(image)
    image = ImageOps.exif_transpose(image)
    if key is not None:
        image.info["transparency"] = key
    if image.mode.startswith("I;16"):
        return _from_16_bit_grey(image)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        raise UndecodableError(f"its pixel format {image.mode!r} is not supported")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = _with_alpha(image)
        white = Image.new("RGBA", image.size, (_WHITE, _WHITE, _WHITE, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _key_color(image: Image.Image) -> Any:
    """The colour that stands for transparency, in the values that the pixels will have, if any.

    Pillow spreads 2 and 4 bits over 0..255, but leaves the key as it stands in the file.
    """
    key = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    if key is None or not tiles:
        return key
    layout = tiles[0].args
    if layout == "RGB;16B":
        raise UndecodableError(
            "its transparency is a key colour of 16 bits a channel, and pixels are decoded to 8"
        )
    if layout == "L;2":
        return (key & 0b11) * 85
    if layout == "L;4":
        return (key & 0b1111) * 17
    return key


def _with_alpha(image: Image.Image) -> Image.Image:
    """Palettes and key colours become alpha; a bilevel picture gets there through grey."""
    if image.mode == "1":
        key = image.info["transparency"]
        image = image.convert("L")
        image.info["transparency"] = _WHITE if key else 0
    return image.convert("RGBA")


def _from_16_bit_grey(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    values = np.asarray(image).astype(np.uint16)
    grey = (values >> 8).astype(np.uint8)
    key = image.info.get("transparency")
    if key is not None:
        grey[values == key] = _WHITE
    return np.repeat(grey[:, :, None], 3, axis=2)


def centered_square(height_px: int, width_px: int) -> tuple[int, int, int, int]:
    """The largest square in the middle: (top, left, height, width); odd rests go to the end."""
    return centered_crop(height_px, width_px, shape=(1, 1))


def centered_crop(
    height_px: int, width_px: int, *, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The largest part in the middle with the proportions of `shape`, (height, width).

    Returned as (top, left, height, width), a side that gives way rounded to whole pixels; odd rests
    go to the end.
    """
    rows, columns = shape
    if width_px * rows >= height_px * columns:
        height, width = height_px, (height_px * columns + rows // 2) // rows
    else:
        height, width = (width_px * rows + columns // 2) // columns, width_px
    height, width = max(1, height), max(1, width)
    return (height_px - height) // 2, (width_px - width) // 2, height, width


def crop_and_resize(
    pixels: UInt8[np.ndarray, "h w 3"],
    crop_px: tuple[int, int, int, int],
    size_px: tuple[int, int],
    *,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> UInt8[np.ndarray, "r c 3"]:
    """Cut out `crop_px` and scale it to (height, width); an exact copy at equal size."""
    top, left, height, width = crop_px
    cropped = pixels[top : top + height, left : left + width]
    if (height, width) == size_px:
        return np.ascontiguousarray(cropped)
    resized = Image.fromarray(np.ascontiguousarray(cropped)).resize(
        (size_px[1], size_px[0]), resampling
    )
    return np.array(resized)
