"""A folder of captioned pictures, as a user has it: first stop on the walk of a sample.

Pictures are PNG, JPEG or WebP at any depth. Captions come from captions.jsonl or captions.csv, or,
where neither is there, from a .txt beside each picture. Whatever is found is accounted for: a
picture without caption, a caption without picture, a caption that cannot be read, a picture of
another format and a linked subfolder become rejections, never silence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from rectiflow.base.errors import UserError
from rectiflow.base.files import explain_os_error, read_json
from rectiflow.data.caption_files import (
    CSV,
    JSONL,
    PLAIN_VARIANT,
    CaptionEntry,
    is_unicode,
    read_caption_file,
    read_text_caption,
)
from rectiflow.data.records import RawSample, Rejection

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
#: Formats that somebody may take for usable ones; files of any other name are no pictures.
OTHER_SUFFIXES = (
    *(".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".jpx"),
    *(".svg", ".psd", ".tga", ".ico"),
)
MAX_FILE_BYTES = 512 * 2**20
STAGE = "folder"
_OTHER_FORMAT = f"its name does not end in one of {', '.join(SUFFIXES)}"


class NoCaptionsError(UserError):
    """A folder has pictures, but no captions, so that a caller may offer one for all."""


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """What a folder holds, by file name: usable entries, and what cannot even be looked at.

    `world` is the name in the folder's world.json, when shapeworld drew it.
    """

    folder: Path
    entries: tuple[CaptionEntry, ...]
    rejections: tuple[Rejection, ...]
    world: str | None

    def __len__(self) -> int:
        return len(self.entries) + len(self.rejections)


def list_folder(folder: Path | str, *, caption: str | None = None) -> FolderListing:
    """List the captioned pictures of a folder without opening any.

    `caption` is that of every picture which has none in the folder.

    Raises:
        NoCaptionsError: there are none at all.
        UserError: no such folder; two caption files in it; no picture that the captions name
            exists; or as `read_caption_file`.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        reason = "it is not a folder" if folder.exists() else "it does not exist"
        raise UserError(f"cannot read the pictures in {folder}: {reason}; check the spelling")
    if not is_unicode(str(folder)):
        raise UserError(
            f"cannot read the pictures in {str(folder)!r}: the folder's name is not UTF-8, and the "
            "store could not say where its pictures came from; rename it"
        )
    caption_file = _caption_file(folder)
    found = _find(folder)
    unread, orphans = list[Rejection](), list[Rejection]()
    if caption_file is not None:
        entries = read_caption_file(caption_file)
    else:
        entries, unread = _text_entries(folder, found)
        orphans = _orphans(found)
    if not entries and not found.pictures:
        raise UserError(
            f"{folder} has no pictures; put PNG, JPEG or WebP files and their captions there"
        )
    if caption is not None:
        entries = _with_caption(entries, found.pictures - {each.file for each in unread}, caption)
    if not entries and unread:
        raise UserError(
            f"none of the captions in {folder} can be read; the first, beside "
            f"{unread[0].file!r}: {unread[0].reason}"
        )
    if not entries:
        raise NoCaptionsError(
            f"{folder} has no captions: add {JSONL} with a line such as "
            '{"file": "images/0.png", "caption": "a red circle"} for each picture, or '
            f"{CSV}, or a .txt file beside each picture"
        )
    usable, rejections = _check_entries(folder, entries, caption_file)
    if not usable:
        raise UserError(
            f"none of the {len(entries)} pictures that {caption_file or folder} names can be used; "
            f"the first, {rejections[0].file!r}: {rejections[0].reason}"
        )
    rejections += unread + orphans
    rejections += _unnamed(found, {each.file for each in (*entries, *unread)})
    return FolderListing(
        folder=folder,
        entries=tuple(sorted(usable, key=lambda entry: entry.file)),
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.file)),
        world=_world_name(folder),
    )


def load_sample(folder: Path, entry: CaptionEntry) -> RawSample | Rejection:
    """Read one picture's bytes; an unreadable file becomes a rejection."""
    path = folder / entry.file
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_FILE_BYTES:
            reason = f"the file has {num_bytes:,} bytes, more than {MAX_FILE_BYTES:,}"
            return Rejection(file=entry.file, stage=STAGE, reason=reason, score=float(num_bytes))
        data = path.read_bytes()
    except OSError as error:
        reason = str(explain_os_error(error, entry.file, "read"))
        return Rejection(file=entry.file, stage=STAGE, reason=reason)
    return RawSample(
        file=entry.file,
        image_bytes=data,
        captions=entry.captions,
        origin=entry.origin,
        license=entry.license,
    )


def _caption_file(folder: Path) -> Path | None:
    # A link that leads nowhere is meant to be one: whoever reads it says so.
    found = [folder / name for name in (JSONL, CSV) if os.path.lexists(folder / name)]
    if len(found) > 1:
        raise UserError(
            f"{folder} has both {JSONL} and {CSV}; keep the one that holds the captions"
        )
    return found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Paths inside a folder, by their looks: pictures, those of other formats, .txt, links."""

    pictures: set[str] = field(default_factory=set[str])
    others: set[str] = field(default_factory=set[str])
    texts: set[str] = field(default_factory=set[str])
    linked_folders: set[str] = field(default_factory=set[str])


def _find(folder: Path) -> _Found:
    """Look for them at any depth; no link to a folder is followed, which might lead in circles."""

    def refuse(error: OSError) -> None:
        raise explain_os_error(error, error.filename or folder, "read the pictures in")

    found = _Found()
    kinds = ((SUFFIXES, found.pictures), (OTHER_SUFFIXES, found.others), (".txt", found.texts))
    for parent, folders, names in os.walk(folder, onerror=refuse):
        inside = Path(parent).relative_to(folder)
        for name in names:
            for suffixes, files in kinds:
                if name.lower().endswith(suffixes):
                    files.add((inside / name).as_posix())
        found.linked_folders.update(
            (inside / name).as_posix() for name in folders if Path(parent, name).is_symlink()
        )
    return found


def _text_entries(folder: Path, found: _Found) -> tuple[list[CaptionEntry], list[Rejection]]:
    """The pictures with a .txt beside them, or a .TXT, and those whose .txt cannot be read."""
    entries: list[CaptionEntry] = []
    rejections: list[Rejection] = []
    # Capitals come first, so that of two the usual spelling stays.
    texts = {_without_suffix(text): text for text in sorted(found.texts)}
    for file in sorted(found.pictures):
        text = texts.get(_without_suffix(file))
        if text is not None:
            try:
                captions = read_text_caption(folder / text)
                entries.append(CaptionEntry(file=file, captions=captions))
            except UserError as error:
                rejections.append(Rejection(file=file, stage=STAGE, reason=str(error)))
    return entries, rejections


def _orphans(found: _Found) -> list[Rejection]:
    """Each .txt that is beside no picture: a caption whose picture is lost, or a note."""
    used = {_without_suffix(file) for file in found.pictures | found.others}
    return [
        Rejection(file=file, stage=STAGE, reason="no picture beside it has its name")
        for file in found.texts
        if _without_suffix(file) not in used
    ]


def _unnamed(found: _Found, named: set[str]) -> list[Rejection]:
    """Of what was found, what no caption is for, and what could not be looked at."""
    reasons = dict.fromkeys(found.pictures - named, "it has no caption")
    reasons |= dict.fromkeys(found.others - named, _OTHER_FORMAT)
    reached = {parent.as_posix() for file in named for parent in PurePosixPath(file).parents}
    reasons |= dict.fromkeys(
        found.linked_folders - reached,
        "it is a link to a folder, which is not followed; copy the pictures into a folder here",
    )
    return [Rejection(file=file, stage=STAGE, reason=why) for file, why in reasons.items()]


def _without_suffix(file: str) -> str:
    return PurePosixPath(file).with_suffix("").as_posix()


def _with_caption(
    entries: list[CaptionEntry], pictures: set[str], caption: str
) -> list[CaptionEntry]:
    """The entries and the pictures that none names, all with a caption."""
    captions = {PLAIN_VARIANT: caption}
    filled = [
        entry
        if any(text.strip() for text in entry.captions.values())
        # Where it comes from is said all the same.
        else replace(entry, captions=captions)
        for entry in entries
    ]
    named = {entry.file for entry in entries}
    return [*filled, *(CaptionEntry(file=f, captions=captions) for f in pictures - named)]


def _check_entries(
    folder: Path, entries: list[CaptionEntry], caption_file: Path | None
) -> tuple[list[CaptionEntry], list[Rejection]]:
    usable: list[CaptionEntry] = []
    rejections: list[Rejection] = []
    # By os.path: a link that leads to itself is no file there, where Path.resolve may raise.
    root = Path(os.path.realpath(folder))
    for entry in entries:
        path = folder / entry.file
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise UserError(
                f"{caption_file or folder}: {entry.file!r} is a link that leads out of the folder; "
                "copy the picture into it"
            )
        if not os.path.isfile(path):  # Path.is_file raises where a name is too long
            reason = "the captions name it, but there is no such file"
            if os.path.islink(path):
                reason = "it is a link that leads to no file"
        elif not entry.file.lower().endswith(SUFFIXES):
            reason = _OTHER_FORMAT
        elif not is_unicode(entry.file):
            reason = "its name is not valid Unicode text; rename it"
        else:
            usable.append(entry)
            continue
        rejections.append(Rejection(file=entry.file, stage=STAGE, reason=reason))
    return usable, rejections


def _world_name(folder: Path) -> str | None:
    path = folder / "world.json"
    if not path.exists():
        return None
    world = read_json(path)
    name = cast(dict[str, Any], world).get("name") if isinstance(world, dict) else None
    if isinstance(name, str) and not is_unicode(name):
        raise UserError(
            f"{path} has {name!r:.40} as name, no valid Unicode text; mend or remove it"
        )
    return name if isinstance(name, str) else None
