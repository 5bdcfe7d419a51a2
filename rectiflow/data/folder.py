"""A folder of captioned pictures, as a user has it: first stop on the walk of a sample.

Pictures are PNG, JPEG or WebP at any depth. Captions come from captions.jsonl or captions.csv, or,
where neither is there, from a .txt beside each picture. Whatever is found is accounted for: a
picture without caption and a caption without picture become rejections, never silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
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

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 512 * 2**20
STAGE = "folder"


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
    caption_file = _caption_file(folder)
    pictures = set(_pictures(folder))
    if caption_file is not None:
        entries = read_caption_file(caption_file)
    else:
        entries = list(_text_entries(folder, pictures))
    if not entries and not pictures:
        raise UserError(
            f"{folder} has no pictures; put PNG, JPEG or WebP files and their captions there"
        )
    if caption is not None:
        entries = _with_caption(entries, pictures, caption)
    if not entries:
        raise NoCaptionsError(
            f"{folder} has no captions: add {JSONL} with a line such as "
            '{"file": "images/0.png", "caption": "a red circle"} for each picture, or '
            f"{CSV}, or a .txt file beside each picture"
        )
    usable, rejections = _check_entries(folder, entries, caption_file)
    if not usable:
        raise UserError(
            f"none of the {len(entries)} pictures that {caption_file} names can be used; the "
            f"first, {rejections[0].file!r}: {rejections[0].reason}"
        )
    named = {entry.file for entry in entries}
    rejections += [
        Rejection(file=file, stage=STAGE, reason="it has no caption") for file in pictures - named
    ]
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
    found = [folder / name for name in (JSONL, CSV) if (folder / name).exists()]
    if len(found) > 1:
        raise UserError(
            f"{folder} has both {JSONL} and {CSV}; keep the one that holds the captions"
        )
    return found[0] if found else None


def _pictures(folder: Path) -> Iterator[str]:
    """Paths inside the folder of all that look like pictures; no link to a folder is followed."""

    def refuse(error: OSError) -> None:
        raise explain_os_error(error, error.filename or folder, "read the pictures in")

    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield Path(parent, name).relative_to(folder).as_posix()


def _text_entries(folder: Path, pictures: set[str]) -> Iterator[CaptionEntry]:
    for file in pictures:
        path = (folder / file).with_suffix(".txt")
        if path.exists():
            yield CaptionEntry(file=file, captions=read_text_caption(path))


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
    root = folder.resolve()
    for entry in entries:
        path = folder / entry.file
        if not path.resolve().is_relative_to(root):
            raise UserError(
                f"{caption_file or folder}: {entry.file!r} is a link that leads out of the folder; "
                "copy the picture into it"
            )
        if not os.path.isfile(path):  # Path.is_file raises where a name is too long
            reason = "the captions name it, but there is no such file"
        elif not entry.file.lower().endswith(SUFFIXES):
            reason = f"its name does not end in one of {', '.join(SUFFIXES)}"
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
    return name if isinstance(name, str) else None
