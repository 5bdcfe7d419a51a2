"""Sources and masks from files and from Pillow are the pixels that one sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generation.tiny_edits import mask, save, source
from PIL import Image

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.edit_files import edit_of, read_edit
from rectiflow.generation.editing import STRENGTH


def test_files_and_pictures_in_memory_are_the_same_edit(tmp_path: Path) -> None:
    image, painted = save(tmp_path / "a.png", source()), save(tmp_path / "m.png", mask())
    read = read_edit(image, painted)
    np.testing.assert_array_equal(read.source, source())
    np.testing.assert_array_equal(read.mask, mask())
    assert read.strength == STRENGTH
    with Image.open(image) as opened, Image.open(painted) as opened_mask:
        assert edit_of(opened, opened_mask).reference == read.reference
    bare = edit_of(source(), mask(), strength=0.3).reference
    assert bare.mask is not None
    assert (bare.source.name, bare.mask.name, bare.strength) == ("", "", 0.3)
    assert bare.source.sha256 == read.reference.source.sha256


def test_the_hash_is_of_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(source()).save(tmp_path / "b.webp", lossless=True)
    first = read_edit(save(tmp_path / "a.png", source())).reference.source
    second = read_edit(tmp_path / "b.webp").reference.source
    assert first.sha256 == second.sha256
    assert (first.name, second.name) == ("a.png", "b.webp")
    turned = save(tmp_path / "c.png", source(32, 64).reshape(64, 32, 3))
    assert read_edit(turned).reference.source.sha256 != first.sha256


def test_pictures_are_upright_and_masks_grey(tmp_path: Path) -> None:
    picture = Image.fromarray(source(32, 64))
    exif = picture.getexif()
    exif[0x0112] = 6  # as a phone held upright writes it
    picture.save(tmp_path / "a.png", exif=exif)
    read = read_edit(tmp_path / "a.png")
    assert read.source.shape == (64, 32, 3)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(edit_of(opened).source, read.source)
    bilevel = Image.fromarray(mask()).convert("1")
    found = edit_of(source(), bilevel).mask
    np.testing.assert_array_equal(found, mask())


def test_what_is_no_edit_is_told_in_a_line(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", source())
    small = save(tmp_path / "m.png", mask()[:32])
    with pytest.raises(UserError, match=r"m.png is 64×32 px, the picture .*a.png 64×64 px; give"):
        read_edit(image, small)
    with pytest.raises(UserError, match=r"cannot read .*nowhere.png: it does not exist"):
        read_edit(tmp_path / "nowhere.png")
    (tmp_path / "a.txt").write_text("a picture")
    with pytest.raises(UserError, match="a.txt is no picture; give a PNG, JPEG or WebP file"):
        read_edit(tmp_path / "a.txt")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut.png cannot be used: it is damaged or cut .*again"):
        read_edit(image, tmp_path / "cut.png")
    with pytest.raises(ConfigError, match="mask is empty"):
        read_edit(image, save(tmp_path / "black.png", np.zeros_like(mask())))
    with pytest.raises(UserError, match="the picture cannot be used: its pixel format 'F'"):
        edit_of(Image.fromarray(np.zeros((8, 8), np.float32)))
    with pytest.raises(ConfigError, match="image is a list; give one picture, of PIL or as an"):
        edit_of([source()])
