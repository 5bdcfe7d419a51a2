"""Image folders: everything found is accounted for, every unusable folder is one clear error."""

import json
from pathlib import Path

import pytest
from data.parts import add_picture, make_folder, picture_bytes, random_pixels

from rectiflow.base.errors import UserError
from rectiflow.data import folder as folder_module
from rectiflow.data.folder import NoCaptionsError, list_folder, load_sample
from rectiflow.data.records import RawSample, Rejection


def test_entries_are_sorted_and_counts_add_up(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        add_picture(tmp_path, index)
    (tmp_path / "stray.WebP").write_bytes(b"")
    with (tmp_path / "captions.jsonl").open("a") as lines:
        lines.write('{"file": "images/missing.png", "caption": "x"}\n')
        lines.write('{"file": "captions.jsonl", "caption": "x"}\n')
    (tmp_path / "world.json").write_text('{"name": "small"}')
    listing = list_folder(tmp_path)
    assert [entry.file for entry in listing.entries] == [f"images/{i:03d}.png" for i in range(3)]
    assert {rejection.file: rejection.reason for rejection in listing.rejections} == {
        "captions.jsonl": "its name does not end in one of .png, .jpg, .jpeg, .jpe, .jfif, .webp",
        "images/missing.png": "the captions name it, but there is no such file",
        "stray.WebP": "it has no caption",
    }
    assert len(listing) == 6
    assert listing.world == "small"


def test_text_beside_pictures_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.png").write_bytes(picture_bytes(random_pixels(0)))
    (tmp_path / "deep" / "er" / "a.txt").write_text("a caption\n")
    (tmp_path / "b.jpg").write_bytes(picture_bytes(random_pixels(0), "JPEG"))
    (tmp_path / "c.PNG").write_bytes(picture_bytes(random_pixels(1)))
    (tmp_path / "c.TXT").write_text("loud")
    listing = list_folder(tmp_path)
    assert [(e.file, e.captions) for e in listing.entries] == [
        ("c.PNG", {"caption": "loud"}),
        ("deep/er/a.png", {"caption": "a caption"}),
    ]
    assert [rejection.file for rejection in listing.rejections] == ["b.jpg"]
    assert listing.world is None


def test_world_without_a_name_is_none(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (tmp_path / "world.json").write_text("[1]")
    assert list_folder(tmp_path).world is None


def test_load_sample(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (entry,) = list_folder(tmp_path).entries
    sample = load_sample(tmp_path, entry)
    assert isinstance(sample, RawSample)
    assert sample.image_bytes == (tmp_path / entry.file).read_bytes()


def test_unreadable_and_huge_files_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, 1)
    (entry,) = list_folder(tmp_path).entries
    monkeypatch.setattr(folder_module, "MAX_FILE_BYTES", 10)
    rejected = load_sample(tmp_path, entry)
    assert isinstance(rejected, Rejection)
    assert rejected.reason.endswith("bytes, more than 10")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    rejected = load_sample(tmp_path, entry)
    assert isinstance(rejected, Rejection)
    assert "cannot read images/000.png: no permission" in rejected.reason


def test_missing_folder_and_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the pictures in .*: it does not exist"):
        list_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="it is not a folder; check the spelling"):
        list_folder(tmp_path / "file")


def test_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no pictures; put PNG, JPEG or WebP files"):
        list_folder(tmp_path)


def test_folder_without_captions(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(random_pixels(0)))
    with pytest.raises(
        NoCaptionsError, match=r"has no captions: add captions\.jsonl with a line such as"
    ):
        list_folder(tmp_path)
    # What is no caption of a picture does not count.
    (tmp_path / "README.txt").write_text("about these pictures")
    with pytest.raises(NoCaptionsError, match="has no captions"):
        list_folder(tmp_path)
    (tmp_path / "captions.jsonl").touch()
    with pytest.raises(UserError, match="has no captions"):
        list_folder(tmp_path)


def test_one_caption_for_pictures_that_have_none(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(picture_bytes(random_pixels(index)))
    (tmp_path / "0.txt").write_text("its own")
    (tmp_path / "1.txt").write_text("  ")
    listing = list_folder(tmp_path, caption="one for all")
    assert [entry.captions for entry in listing.entries] == [
        {"caption": "its own"},
        {"caption": "one for all"},
        {"caption": "one for all"},
    ]
    assert not listing.rejections
    assert len(list_folder(tmp_path).rejections) == 1


def test_a_caption_is_not_invented_for_a_missing_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no pictures"):
        list_folder(tmp_path, caption="one for all")


def test_two_caption_files(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").touch()
    (tmp_path / "captions.csv").touch()
    with pytest.raises(
        UserError, match=r"has both captions\.jsonl and captions\.csv; keep the one"
    ):
        list_folder(tmp_path)


def test_captions_that_name_only_missing_pictures(tmp_path: Path) -> None:
    long = "x" * 10_000 + ".png"
    lines = [json.dumps({"file": file, "caption": "x"}) for file in ("a.png", long)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"none of the 2 pictures .* the first, 'a.png': the captions"
    ):
        list_folder(tmp_path)


def test_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture_bytes(random_pixels(0)))
    folder = make_folder(tmp_path / "folder", 1)
    (folder / "images" / "000.png").unlink()
    (folder / "images" / "000.png").symlink_to(outside)
    with pytest.raises(UserError, match=r"'images/000.png' is a link that leads out of the folder"):
        list_folder(folder)


@pytest.mark.parametrize("target", ["001.png", "none.png"])
def test_a_link_that_leads_nowhere_is_rejected(target: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, 2)
    (folder / "images" / "001.png").unlink()
    (folder / "images" / "001.png").symlink_to(target)
    listing = list_folder(folder)
    assert [entry.file for entry in listing.entries] == ["images/000.png"]
    assert [(each.file, each.reason) for each in listing.rejections] == [
        ("images/001.png", "it is a link that leads to no file")
    ]


def test_captions_without_their_file_or_pictures_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").symlink_to("lost.jsonl")
    (tmp_path / "a.png").symlink_to("a.png")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"captions\.jsonl: it does not exist"):
        list_folder(tmp_path)
    (tmp_path / "captions.jsonl").unlink()
    with pytest.raises(
        UserError, match=rf"none of the 1 pictures that {tmp_path} names .* 'a.png'"
    ):
        list_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".jpe", ".jfif", ".JPE"])
def test_a_jpeg_by_any_of_its_names_is_read(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(picture_bytes(random_pixels(0), "JPEG"))
    (tmp_path / "a.txt").write_text("x")
    assert [entry.file for entry in list_folder(tmp_path).entries] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", folder_module.OTHER_SUFFIXES)
def test_pictures_of_other_formats_are_rejected_by_name(suffix: str, tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (tmp_path / f"other{suffix}").touch()
    (rejection,) = list_folder(tmp_path).rejections
    assert "its name does not end in one of" in rejection.reason


def test_file_name_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "images" / "000.txt").write_text("x")
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name).with_suffix(".txt").write_text("x")
    (rejection,) = list_folder(tmp_path).rejections
    assert rejection.reason == "its name is not valid Unicode text; rename it"


def test_what_is_of_no_use_is_listed(tmp_path: Path) -> None:
    """Captions in .txt: orphans, other formats, links to folders, text that is not UTF-8."""
    for name in ("good.png", "bad.png", "moving.gif", "scan.TIFF"):
        (tmp_path / name).write_bytes(picture_bytes(random_pixels(0)))
    for name in ("good", "moving", "orphan", "README"):
        (tmp_path / f"{name}.txt").write_text("x")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    for caption in (None, "one for all"):
        listing = list_folder(tmp_path, caption=caption)
        assert [entry.file for entry in listing.entries] == ["good.png"]
        other = "its name does not end in one of .png, .jpg, .jpeg, .jpe, .jfif, .webp"
        reasons = {rejection.file: rejection.reason for rejection in listing.rejections}
        assert reasons.pop("linked").startswith("it is a link to a folder, which is not followed;")
        assert reasons.pop("bad.png").endswith(
            "bad.txt:1: the text is not UTF-8; save the file as UTF-8"
        )
        assert reasons == {
            "README.txt": "no picture beside it has its name",
            "moving.gif": other,
            "orphan.txt": "no picture beside it has its name",
            "scan.TIFF": other,
        }  # fmt: skip
        assert len(listing) == 7


def test_text_beside_a_caption_file_is_no_caption(tmp_path: Path) -> None:
    make_folder(tmp_path / "folder", 1)
    (tmp_path / "folder" / "orphan.txt").write_text("x")
    (tmp_path / "folder" / "still.bmp").touch()
    (rejection,) = list_folder(tmp_path / "folder").rejections
    assert rejection.file == "still.bmp"


def test_a_linked_folder_whose_pictures_are_named_is_used(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    with (tmp_path / "captions.jsonl").open("a") as lines:
        lines.write('{"file": "linked/000.png", "caption": "x"}\n')
    listing = list_folder(tmp_path)
    assert (len(listing.entries), listing.rejections) == (2, ())


def test_only_captions_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(random_pixels(0)))
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(
        UserError,
        match=r"none of the captions in .* be read; the first, beside 'a.png': .*a.txt:1: the te",
    ):
        list_folder(tmp_path)


def test_a_folder_or_world_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape")
    make_folder(folder, 1)
    with pytest.raises(UserError, match="the folder's name is not UTF-8, .*; rename it") as error:
        list_folder(folder)
    str(error.value).encode()
    folder = make_folder(tmp_path / "folder", 1)
    (folder / "world.json").write_text('{"name": "\\ud800"}')
    with pytest.raises(UserError, match=r"world.json has .* as name, no valid Unicode text; mend"):
        list_folder(folder)


def test_unreadable_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, 1)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder_module.os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read the pictures in .*: no permission"):
        list_folder(tmp_path)
