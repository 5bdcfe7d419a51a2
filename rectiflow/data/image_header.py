"""A picture's format and size from the first bytes of its file, without decoding anything.

Curation refuses a picture of 50,000 × 50,000 px by these numbers alone: no decoder has seen it and
nothing of its size was allocated. Sources: PNG 3rd edition, 11.2.1 (IHDR); ITU-T T.81, B.2.2
(frame header); RFC 9649, 2.5–2.7 (WebP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PNG = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers; the gaps are Huffman tables, arithmetic coding and an extension.
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length: TEM, restarts, start of image.
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}
# What a marker begins with: any number of fill bytes, which take a loop of Python's minutes.
_JPEG_START = re.compile(rb"\xff+")
#: Some hundred stand before a frame at most, those of a colour profile of many megabytes.
_MAX_JPEG_SEGMENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """Format ("PNG", "JPEG" or "WEBP") and the size as stored, before any EXIF rotation."""

    format: str
    height_px: int
    width_px: int


def read_image_header(data: bytes) -> ImageHeader | None:
    """The header of a PNG, JPEG or WebP file; None when the bytes are none of them, or cut."""
    if data.startswith(_PNG):
        found = _png_size(data)
        name = "PNG"
    elif data.startswith(b"\xff\xd8"):
        found = _jpeg_size(data)
        name = "JPEG"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = _webp_size(data)
        name = "WEBP"
    else:
        return None
    return found and ImageHeader(format=name, height_px=found[0], width_px=found[1])


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        start = _JPEG_START.match(data, position)
        if start is None or start.end() + 3 > len(data):
            return None
        position = start.end() - 1
        marker = data[position + 1]
        if marker in _JPEG_BARE:
            position += 2
        elif marker in _JPEG_FRAMES:
            frame = data[position + 5 : position + 9]
            if len(frame) < 4:
                return None
            return int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:], "big")
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = data[24:27], data[27:30]
        return int.from_bytes(height, "little") + 1, int.from_bytes(width, "little") + 1
    if chunk == b"VP8 ":
        width, height = data[26:28], data[28:30]
        return int.from_bytes(height, "little") & 0x3FFF, int.from_bytes(width, "little") & 0x3FFF
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return None
