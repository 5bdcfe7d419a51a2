"""The conversion rules, each on a picture whose result is known by hand."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from data.parts import picture_bytes, random_pixels
from PIL import Image

from rectiflow.data.pixels import (
    UndecodableError,
    centered_square,
    crop_and_resize,
    decode_picture,
    to_rgb,
)


def decode(image: Image.Image, format: str = "PNG", **options: object) -> np.ndarray:
    data = io.BytesIO()
    image.save(data, format, **options)
    return decode_picture(data.getvalue(), size_px=(image.height, image.width))


def test_rgb_is_an_exact_copy() -> None:
    pixels = random_pixels(0)
    assert (decode(Image.fromarray(pixels)) == pixels).all()
    assert (decode(Image.fromarray(pixels), "WEBP", lossless=True) == pixels).all()


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = 0, 128, 255
    assert decode(Image.fromarray(rgba)).tolist() == [
        [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    ]
    grey = np.array([[[10, 0], [10, 255]]], np.uint8)
    assert decode(Image.fromarray(grey, "LA")).tolist() == [[[255] * 3, [10] * 3]]


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode(image).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(image, transparency=1).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("mode", "values", "key", "expected"),
    [
        ("L", [7, 9], 9, [7, 255]),
        ("1", [0, 255], 0, [255, 255]),
        ("1", [0, 255], 255, [0, 255]),
        ("I;16", [0x1234, 0x1235], 0x1235, [0x12, 255]),
    ],
)
def test_key_color_is_transparent(
    mode: str, values: list[int], key: int, expected: list[int]
) -> None:
    image = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    assert decode(image, transparency=key).tolist() == [[[value] * 3 for value in expected]]


def test_rgb_key_color() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8))
    assert decode(image, transparency=(1, 2, 3)).tolist() == [[[255] * 3, [1, 2, 4]]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    grey = np.array([[0, 255, 256, 0xABCD, 0xFFFF]], np.uint16)
    assert decode(Image.fromarray(grey)).tolist() == [[[v >> 8] * 3 for v in grey[0].tolist()]]
    data = hand_made_png(16, 2, struct.pack(">6H", 0x1234, 0x56FF, 0x78FF, 0, 0xFFFF, 0x00FF), 2)
    assert decode_picture(data, size_px=(1, 2)).tolist() == [[[0x12, 0x56, 0x78], [0, 255, 0]]]


def hand_made_png(depth: int, color: int, row: bytes, width: int, key: Sequence[int] = ()) -> bytes:
    """A PNG file of one row: what Pillow does not write, with the key colour as tRNS."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0))
        + (chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b"")
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


GREY, RGB = 0, 2


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, 0b0100_0000, 0, [255, 255, 255, 255]),
        (1, 0b0100_0000, 1, [0, 255, 0, 0]),
        (2, 0b00_01_10_11, 2, [0, 85, 255, 255]),
        (2, 0b00_01_10_11, 0, [255, 85, 170, 255]),
        (4, 0x3A, 10, [51, 255]),
        (4, 0x3A, 3, [255, 170]),
    ],
)
def test_the_key_of_a_grey_picture_has_its_bit_depth(
    depth: int, row: int, key: int, expected: list[int]
) -> None:
    width = len(expected)
    data = hand_made_png(depth, GREY, bytes([row]), width, [key])
    grey = decode_picture(data, size_px=(1, width))[0, :, 0].tolist()
    assert grey == expected


def test_a_key_color_of_16_bits() -> None:
    row = struct.pack(">2H", 0x1234, 0x1235)
    data = hand_made_png(16, GREY, row, 2, [0x1235])
    assert decode_picture(data, size_px=(1, 2))[0, :, 0].tolist() == [0x12, 255]
    # The decoder keeps the high bytes, of which these two pixels have the same.
    row = struct.pack(">6H", 0x1234, 1, 1, 0x1235, 1, 1)
    data = hand_made_png(16, RGB, row, 2, [0x1234, 1, 1])
    with pytest.raises(UndecodableError, match="is a key colour of 16 bits a channel, and pixels"):
        decode_picture(data, size_px=(1, 2))


def test_cmyk_without_a_profile() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(image, "JPEG", quality=95).astype(int) - [255, 0, 0]).max() <= 3


def test_bilevel_and_grey_have_three_equal_channels() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert decode(image).tolist() == [[[0] * 3, [255] * 3]]
    assert decode(Image.new("L", (1, 1), 77)).tolist() == [[[77] * 3]]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, turn: object) -> None:
    pixels = random_pixels(1)[:5, :3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decode(Image.fromarray(pixels), exif=exif.tobytes()) == turn(pixels)).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_cut_file_is_refused(format: str) -> None:
    data = picture_bytes(random_pixels(2, 64), format)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(UndecodableError, match="it is damaged or cut"):
            decode_picture(data[: int(len(data) * share)], size_px=(64, 64))


def test_header_and_decoder_must_agree() -> None:
    data = picture_bytes(random_pixels(0))
    with pytest.raises(UndecodableError, match="header says 9×8 px, the decoder 32×32 px"):
        decode_picture(data, size_px=(8, 9))


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fence, should a caller allow more pixels than Pillow does."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UndecodableError, match="32×32 px exceeds Pillow's limit of 1000 pixels"):
        decode_picture(picture_bytes(random_pixels(0)), size_px=(32, 32))


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    data = picture_bytes(random_pixels(0))
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode_picture(data, size_px=(32, 32))


def test_animation_is_refused() -> None:
    frames = [Image.fromarray(random_pixels(i)) for i in range(2)]
    with pytest.raises(UndecodableError, match="it is an animation of 2 frames"):
        decode(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def test_main_picture_of_a_multi_picture_jpeg() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (50, 200)]
    pixels = decode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels.astype(int) - 50).max() <= 2


def test_other_pixel_formats_are_refused() -> None:
    with pytest.raises(UndecodableError, match="its pixel format 'LAB' is not supported"):
        to_rgb(Image.new("LAB", (1, 1)))


def test_square_is_centered() -> None:
    assert centered_square(10, 10) == (0, 0, 10, 10)
    assert centered_square(10, 4) == (3, 0, 4, 4)
    assert centered_square(4, 9) == (0, 2, 4, 4)


def test_crop_of_the_right_size_is_exact() -> None:
    pixels = random_pixels(3)
    cropped = crop_and_resize(pixels, (2, 3, 16, 16), (16, 16))
    assert (cropped == pixels[2:18, 3:19]).all()


def test_resize_keeps_flat_color_and_uses_only_the_crop() -> None:
    pixels = np.full((40, 20, 3), 9, np.uint8)
    pixels[10:30] = 100
    assert (crop_and_resize(pixels, (10, 0, 20, 20), (16, 16)) == 100).all()
    assert (crop_and_resize(pixels, (10, 0, 20, 20), (32, 32)) == 100).all()
