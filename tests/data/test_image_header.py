"""Sizes from headers equal what Pillow decodes; damaged headers give nothing."""

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rectiflow.data.image_header import ImageHeader, read_image_header

VARIANTS = [
    ("PNG", "RGB", {}),
    ("PNG", "I;16", {}),
    ("JPEG", "RGB", {}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("JPEG", "L", {"exif": Image.Exif().tobytes() + b"\0" * 300, "comment": b"x" * 1000}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {"quality": 50}),
    ("WEBP", "RGB", {"exif": b"Exif\0\0" + b"\0" * 20}),
]


def encoded(format: str, mode: str, height: int, width: int, options: dict[str, object]) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (width, height)).save(data, format, **options)
    return data.getvalue()


@pytest.mark.parametrize(("format", "mode", "options"), VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (257, 2)])
def test_header_equals_decoder(
    format: str, mode: str, options: dict[str, object], height: int, width: int
) -> None:
    header = read_image_header(encoded(format, mode, height, width, options))
    assert header == ImageHeader(format=format, height_px=height, width_px=width)


@pytest.mark.parametrize(("format", "mode", "options"), VARIANTS)
def test_cut_header_is_none_or_whole(format: str, mode: str, options: dict[str, object]) -> None:
    data = encoded(format, mode, 33, 44, options)
    whole = read_image_header(data)
    found = [read_image_header(data[:length]) for length in range(min(len(data), 1600))]
    assert set(found) <= {None, whole}
    assert found[:10] == [None] * 10


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"\xff\xd8\x00", b"\xff\xd8\xff\x01\xff\xff\xff", b"RIFF1234WEBPxxxx" * 9],
)
def test_other_bytes_are_none(data: bytes) -> None:
    assert read_image_header(data) is None


@given(
    st.binary(max_size=200), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF0000WEBP"])
)
@settings(max_examples=200, deadline=None)
def test_hostile_bytes_never_raise(rest: bytes, magic: bytes) -> None:
    header = read_image_header(magic + rest)
    assert header is None or min(header.height_px, header.width_px) >= 0


def test_size_is_not_limited_by_memory() -> None:
    """A 50,000 × 50,000 header without any picture behind it."""
    data = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + np.array([50_000] * 2, ">u4").tobytes()
    assert read_image_header(data) == ImageHeader(format="PNG", height_px=50_000, width_px=50_000)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xd8", b"\xff\xe0\0\2", b"\xff\xe0\0\0"])
def test_a_jpeg_of_nothing_but_filling_takes_no_time(filling: bytes) -> None:
    data = b"\xff\xd8" + filling * (2**26 // len(filling))
    start = time.process_time()
    assert read_image_header(data) is None
    assert time.process_time() - start < 1.0


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    data = encoded("JPEG", "RGB", 5, 300, {})
    for count in (1, 2, 1000):
        filled = data[:2] + b"\xff" * count + data[2:]
        assert read_image_header(filled) == read_image_header(data)
