"""Pictures on the disk: PNG files that carry how they were made in a text chunk.

Last stop on the walk of a prompt. The text chunk `rectiflow` holds JSON (ASCII, so that any reader
of PNG text shows it); `read_metadata` gives it back. `parameters` holds the part of it that other
tools read (`generation.parameters_text`).
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_write, explain_os_error

METADATA_KEY = "rectiflow"
PARAMETERS_KEY = "parameters"


def encode_png(
    image: NDArray[np.uint8],
    metadata: dict[str, Any] | None = None,
    *,
    parameters: str | None = None,
) -> bytes:
    """PNG bytes of an image [h w 3]; equal images and texts give equal bytes."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [h w 3], got {image.dtype} {list(image.shape)}")
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_text(METADATA_KEY, json.dumps(metadata, sort_keys=True))
    if parameters is not None:
        chunks.add_text(PARAMETERS_KEY, parameters)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def save_png(
    path: Path | str,
    image: NDArray[np.uint8],
    metadata: dict[str, Any],
    *,
    parameters: str | None = None,
) -> None:
    """Write a picture with its metadata, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    data = encode_png(image, metadata, parameters=parameters)
    with atomic_write(path) as file:
        file.write(data)


def read_png(path: Path | str) -> NDArray[np.uint8]:
    """The pixels [h w 3] of a picture that `save_png` wrote.

    Raises:
        UserError: the file is missing or is no whole picture.
    """
    with _open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """How a picture was made: prompt, seed, settings, model.

    Raises:
        UserError: the file is missing, is no whole picture, or was not made by rectiflow.
    """
    text = read_texts(path).get(METADATA_KEY)
    if text is None:
        raise UserError(f"{path} carries no rectiflow metadata: it was made or changed elsewhere")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError(f"{path} has metadata that is no JSON object: it was changed elsewhere")
    return cast(dict[str, Any], metadata)


def read_texts(path: Path | str) -> dict[str, str]:
    """The text chunks of a PNG by name, whoever wrote it; none in any other kind of picture.

    Raises:
        UserError: the file is missing or is no whole picture.
    """
    with _open(path) as picture:
        return {name: str(text) for name, text in getattr(picture, "text", {}).items()}


def _open(path: Path | str) -> Image.Image:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large to be a picture of ours ({error})") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no whole picture ({error}); make it again") from error
    return picture
