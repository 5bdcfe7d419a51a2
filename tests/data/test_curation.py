"""Curation stages: pure, every sample kept or rejected with a reason, nothing decoded too early."""

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.parts import picture_bytes, random_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rectiflow.base.errors import UserError
from rectiflow.data import curation as curation_module
from rectiflow.data.curation import (
    CropToBucket,
    Curation,
    Decode,
    LimitSize,
    RequireCaption,
    content_hash,
    write_quarantine,
)
from rectiflow.data.records import CuratedSample, RawSample, Rejection

CURATION = Curation(resolution_px=32)


def raw(data: bytes, **changes: object) -> RawSample:
    settings = {"file": "a.png", "image_bytes": data, "captions": {"terse": "a"}}
    return RawSample(**(settings | changes))


def reason(found: object) -> str:
    assert isinstance(found, Rejection)
    return found.reason


def bomb() -> bytes:
    """A valid PNG header of 50,000 × 50,000 px with a little of its picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000)))


def test_a_fitting_picture_passes_unchanged() -> None:
    pixels = random_pixels(0)
    data = picture_bytes(pixels)
    sample = CURATION.apply(raw(data, origin="here", license="CC0"))
    assert isinstance(sample, CuratedSample)
    assert (sample.pixels == pixels).all()
    assert (sample.size_px, sample.crop_px) == ((32, 32), (0, 0, 32, 32))
    assert sample.content_hash == content_hash(data)
    assert (sample.origin, sample.license, sample.captions) == ("here", "CC0", {"terse": "a"})


def test_a_larger_picture_is_cropped_and_resized() -> None:
    sample = CURATION.apply(raw(picture_bytes(np.zeros((70, 50, 3), np.uint8))))
    assert isinstance(sample, CuratedSample)
    assert sample.pixels.shape == (32, 32, 3)
    assert (sample.size_px, sample.crop_px) == ((70, 50), (10, 0, 50, 50))


def test_size_is_that_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture_bytes(np.zeros((40, 60, 3), np.uint8), exif=exif.tobytes())
    sample = CURATION.apply(raw(data))
    assert isinstance(sample, CuratedSample)
    assert sample.size_px == (60, 40)


def test_one_pixel_is_too_small() -> None:
    data = picture_bytes(np.zeros((1, 1, 3), np.uint8))
    found = CURATION.apply(raw(data))
    assert reason(found) == "1×1 px is too small; both sides need at least 32 px"
    assert isinstance(found, Rejection)
    assert (found.stage, found.score) == ("size", 1.0)
    enlarged = Curation(resolution_px=32, min_side_px=1).apply(raw(data))
    assert isinstance(enlarged, CuratedSample)
    assert enlarged.pixels.shape == (32, 32, 3)


def test_a_huge_picture_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("the picture was decoded")

    monkeypatch.setattr(curation_module, "decode_picture", decode)
    monkeypatch.setattr(Image, "open", decode)
    found = CURATION.apply(raw(bomb()))
    assert reason(found) == "50000×50000 px is too large; at most 67,108,864 pixels are decoded"


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(100), b"text"])
def test_no_picture(data: bytes) -> None:
    text = "it is not a PNG, JPEG or WebP file, or its header is damaged"
    assert reason(CURATION.apply(raw(data))) == text
    assert reason(Decode().apply(raw(data))) == text


def test_truncated_picture() -> None:
    data = picture_bytes(random_pixels(0))
    assert "it is damaged or cut" in reason(CURATION.apply(raw(data[: len(data) // 2])))


def test_captions() -> None:
    data = picture_bytes(random_pixels(0))
    assert reason(CURATION.apply(raw(data, captions={}))) == "it has no caption"
    assert reason(CURATION.apply(raw(data, captions={"a": " \n"}))) == "it has no caption"
    found = CURATION.apply(raw(data, captions={"a": "\ud800"}))
    assert reason(found) == "its caption 'a' is not valid Unicode text"
    kept = RequireCaption().apply(raw(data, captions={"a": "", "b": "🎈" * 10_000}))
    assert isinstance(kept, RawSample)
    assert list(kept.captions) == ["b"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"resolution_px": 4}, "resolution_px is 4; it must be at least 8"),
        ({"resolution_px": 8, "min_side_px": 0}, "min_side_px is 0; it must be at least 1"),
        (
            {"resolution_px": 64, "max_pixels": 100},
            "resolution_px 64 asks for sides of at least 64 px, .* 100 pixels .* at most 10",
        ),
    ],
)
def test_impossible_limits(settings: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Curation(**settings)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_never_raise_and_stages_are_pure(draw: st.DataObject) -> None:
    """Flipped bytes and cuts at any place: a sample or a rejection, the same one twice."""
    format = draw.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    data = bytearray(picture_bytes(random_pixels(0), format))
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    sample = raw(bytes(data[: draw.draw(st.integers(0, len(data)))]))
    before = replace(sample)
    first, second = CURATION.apply(sample), CURATION.apply(sample)
    assert sample == before
    assert type(first) is type(second)
    if isinstance(first, CuratedSample):
        assert isinstance(second, CuratedSample)
        assert (first.pixels == second.pixels).all()
    else:
        assert first == second


def test_stages_have_names_and_limits_are_inclusive() -> None:
    assert [RequireCaption().name, Decode().name, CropToBucket(buckets=()).name] == [
        "caption", "decode", "crop",
    ]  # fmt: skip
    data = picture_bytes(random_pixels(0))
    assert isinstance(LimitSize(min_side_px=32, max_pixels=1024).apply(raw(data)), RawSample)
    assert isinstance(LimitSize(min_side_px=33, max_pixels=1024).apply(raw(data)), Rejection)
    assert isinstance(LimitSize(min_side_px=32, max_pixels=1023).apply(raw(data)), Rejection)


def test_quarantine_is_sorted_json_lines(tmp_path: Path) -> None:
    rejections = [
        Rejection(file="b\udcff.png", stage="decode", reason="it is cut"),
        Rejection(file="a.png", stage="size", reason="1×1 px", score=1.0),
    ]
    write_quarantine(tmp_path / "quarantine.jsonl", rejections)
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert lines[0] == '{"file": "a.png", "stage": "size", "reason": "1×1 px", "score": 1.0}'
    assert json.loads(lines[1])["file"] == "b\udcff.png"


def test_header_and_decoder_share_pillow_formats() -> None:
    """A file that Pillow would read, but whose format is not among the three."""
    data = io.BytesIO()
    Image.fromarray(random_pixels(0)).save(data, "BMP")
    assert isinstance(CURATION.apply(raw(data.getvalue())), Rejection)
