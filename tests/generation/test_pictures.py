"""PNG files: pixels and metadata survive, damage is told."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rectiflow.base.errors import UserError
from rectiflow.generation.pictures import (
    encode_png,
    read_metadata,
    read_png,
    read_texts,
    save_png,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def test_round_trip(tmp_path: Path) -> None:
    about = {"prompt": "a 🦊 \n é", "seed": 2**62}
    save_png(tmp_path / "a.png", IMAGE, about)
    assert read_metadata(tmp_path / "a.png") == about
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), IMAGE)


def test_same_content_same_bytes() -> None:
    assert encode_png(IMAGE, {"a": 1, "b": 2}) == encode_png(IMAGE, {"b": 2, "a": 1})


def test_damage_is_told(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", IMAGE, {})
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:120])
    with pytest.raises(UserError, match="cut.png is no whole picture"):
        read_png(tmp_path / "cut.png")
    with pytest.raises(UserError, match="cannot read .*none.png: it does not exist"):
        read_png(tmp_path / "none.png")
    Image.fromarray(IMAGE).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="carries no rectiflow metadata"):
        read_metadata(tmp_path / "plain.png")


def test_both_texts_stand_side_by_side(tmp_path: Path) -> None:
    text = "a 🦊\nNegative prompt: é, a\nSteps: 1"
    save_png(tmp_path / "a.png", IMAGE, {"prompt": "a"}, parameters=text)
    texts = read_texts(tmp_path / "a.png")
    assert list(texts) == ["rectiflow", "parameters"]
    assert texts["parameters"] == text
    Image.fromarray(IMAGE).save(tmp_path / "a.jpg")
    assert read_texts(tmp_path / "a.jpg") == {}


def test_metadata_that_others_changed(tmp_path: Path) -> None:
    for content in ("{", "[1]"):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("rectiflow", content)
        Image.fromarray(IMAGE).save(tmp_path / "a.png", pnginfo=chunks)
        with pytest.raises(UserError, match="has metadata that is no JSON object"):
            read_metadata(tmp_path / "a.png")


def test_only_pictures_are_encoded() -> None:
    with pytest.raises(ValueError, match=r"a picture is uint8 \[h w 3\], got uint8 \[8, 12\]"):
        encode_png(IMAGE[..., 0])


def test_a_picture_of_too_many_pixels_is_told(tmp_path: Path) -> None:
    side = (50_000).to_bytes(4, "big")
    chunks = (b"IHDR" + side + side + bytes([8, 2, 0, 0, 0]), b"IDAT" + zlib.compress(b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        for chunk in chunks
    )
    (tmp_path / "big.png").write_bytes(data)
    with pytest.raises(UserError, match=r"big.png is too large to be a picture of ours"):
        read_metadata(tmp_path / "big.png")
