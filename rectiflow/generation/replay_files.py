"""The files beside a picture that it was drawn from, found again by name and checked by hash.

For a replay: a source and a mask by their pixels, LoRAs by their files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from rectiflow.base.errors import UserError
from rectiflow.generation.edit_files import read_edit, read_mask, read_source
from rectiflow.generation.editing import Edit, hash_pixels
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import hash_lora
from rectiflow.generation.metadata import PictureMetadata

_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class ReplayFiles:
    """Where files lie now, if neither beside the picture nor in the current folder."""

    image: Path | None = None
    mask: Path | None = None
    loras: tuple[Path, ...] = ()


def find_edit(path: Path, recorded: PictureMetadata, files: ReplayFiles) -> Edit | None:
    """The edit that the picture at `path` was drawn by, or None.

    Raises:
        UserError: a file is nowhere, or has other pixels than then; or one is given that the
            picture was not drawn from.
    """
    edit = recorded.edit
    if edit is None and files.image is not None:
        raise UserError(f"{path} was drawn from no picture; leave out --image {files.image}")
    if (edit is None or edit.mask is None) and files.mask is not None:
        raise UserError(f"{path} was drawn under no mask; leave out --mask {files.mask}")
    if edit is None:
        return None
    image = _Search(what="picture", option="--image", digest=lambda p: hash_pixels(read_source(p)))
    mask = _Search(what="mask", option="--mask", digest=lambda p: hash_pixels(read_mask(p)))
    return read_edit(
        image.find(path, edit.source.name, edit.source.sha256, files.image),
        edit.mask and mask.find(path, edit.mask.name, edit.mask.sha256, files.mask),
        strength=edit.strength,
        keep_source=edit.keep_source,
    )


def find_loras(path: Path, recorded: PictureMetadata, files: ReplayFiles) -> tuple[LoraFile, ...]:
    """The LoRAs of the picture at `path`, with their weights.

    Raises:
        UserError: as `find_edit`.
    """
    given = {hash_lora(file): file for file in files.loras}
    wanted = {lora.sha256 for lora in recorded.loras}
    for sha256, file in given.items():
        if not wanted:
            raise UserError(f"{path} was drawn without LoRAs; leave out --lora {file}")
        if sha256 not in wanted:
            those = ", ".join(f"{one.name} ({_short(one.sha256)})" for one in recorded.loras)
            raise UserError(
                f"{file} ({_short(sha256)}) is none of the LoRAs that {path} was drawn with, which "
                f"are {those}; give the files of then"
            )
    search = _Search(what="LoRA", option="--lora", digest=hash_lora)
    return tuple(
        LoraFile(
            path=given.get(lora.sha256) or search.find(path, lora.name, lora.sha256, None),
            weight=lora.weight,
        )
        for lora in recorded.loras
    )


@dataclass(frozen=True, kw_only=True)
class _Search:
    what: str
    option: str
    digest: Callable[[Path], str]

    def find(self, path: Path, name: str, sha256: str, given: Path | None) -> Path:
        """The file of that hash: the one given, or of that name beside `path` or at hand."""
        # A name from somebody's file must not lead out of these two folders.
        name = PurePath(name).name
        places = dict.fromkeys((path.parent / name, Path(name)))
        there = [place for place in places if name and place.is_file()]
        candidates = there if given is None else [given]
        if not candidates:
            raise UserError(
                f"{path} was drawn with the {self.what} {name!r} ({_short(sha256)}), which lies "
                f"neither beside it nor in the current folder; say where it lies ({self.option})"
            )
        found = {candidate: self.digest(candidate) for candidate in candidates}
        for candidate, digest in found.items():
            if digest == sha256:
                return candidate
        raise UserError(
            f"{path} was drawn with a {self.what} of {_short(sha256)}, but {candidates[0]} has "
            f"{_short(found[candidates[0]])}; give the {self.what} of then ({self.option})"
        )


def _short(sha256: str) -> str:
    return f"SHA-256 {sha256[:_DIGITS]}…"
