"""A list of prompts into a folder: what `rectiflow sample --prompts` does.

Pictures of equal settings, LoRAs and sources are drawn together, whichever lines they are of. A
file's name follows from its content, so a list that was stopped, or has grown, is only completed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rectiflow.base.config import to_json
from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_write
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.editing import Edit, check_edit
from rectiflow.generation.folder import (
    MAX_TOGETHER,
    Warn,
    check_count,
    counted_from,
    draw_to_files,
    refuse_file,
    warn_on_stderr,
)
from rectiflow.generation.line_sources import LineEdits, LineModels, telling
from rectiflow.generation.metadata import (
    PictureMetadata,
    count_up,
    describe_truncations,
    picture_metadata,
)
from rectiflow.generation.model import Model, load_model
from rectiflow.generation.noise import check_seed
from rectiflow.generation.pictures import read_metadata
from rectiflow.generation.prompt_list import PromptEntry
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import OnProgress, check_request
from rectiflow.generation.variations import Variation

INDEX_FILE = "index.jsonl"


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A picture, and the first line that asks for it."""

    about: PictureMetadata
    entry: PromptEntry


@dataclass(frozen=True, kw_only=True)
class _Usual:
    """How lines are drawn that say nothing else."""

    count: int
    seed: int
    negative_prompt: str
    settings: SamplingSettings
    variation: Variation | None


def draw_list(
    model: Model | str | Path,
    entries: Sequence[PromptEntry],
    out: Path | str,
    *,
    count: int = 1,
    seed: int = 0,
    negative_prompt: str = "",
    settings: SamplingSettings | None = None,
    edit: Edit | None = None,
    variation: Variation | None = None,
    changes: ModelChanges | None = None,
    progress: OnProgress | None = None,
    warn: Warn = warn_on_stderr,
) -> list[list[Path]]:
    """Draw every line of a list; the files of each line, whose seeds count up from the line's own.

    `count`, `seed`, `negative_prompt`, `settings`, `edit` and the LoRAs of `changes` are for what a
    line leaves open, the rest of `changes` and `variation` for all lines, as in `sample_to_folder`.
    Lines are checked before the first is drawn, as far as can be told without drawing. A whole
    picture in `out` that says the same of itself is taken as drawn, wherever it was;
    `progress(done, total)` counts the others. At the end `index.jsonl` in `out` gives the files of
    each line.

    Raises:
        UserError: the model is unusable, a line cannot be drawn, two different pictures would have
            the same name, or a file cannot be written. The text gives the line.
    """
    out = Path(out)
    refuse_file(out)
    loaded = model if isinstance(model, Model) else load_model(model)
    models, edits = LineModels(loaded, changes or ModelChanges(), warn), LineEdits(edit)
    usual = _Usual(
        count=count,
        seed=seed,
        negative_prompt=negative_prompt,
        settings=settings or loaded.settings,
        variation=variation,
    )
    planned: list[list[PictureMetadata]] = []
    for entry in entries:
        with telling(entry.place):
            pictures = _plan(models, edits, entry, usual)
        for text in describe_truncations(pictures[0].cut or {}):
            warn(f"{entry.place}: {text}")
        planned.append(pictures)
    missing = [wanted for wanted in _distinct(entries, planned) if not _is_drawn(out, wanted.about)]
    _draw(models, edits, missing, out, progress)
    _write_index(out, entries, planned)
    return [[out / about.file_name for about in pictures] for pictures in planned]


def _plan(
    models: LineModels, edits: LineEdits, entry: PromptEntry, usual: _Usual
) -> list[PictureMetadata]:
    edit, settings = edits.of(entry), usual.settings
    if edit is not None and entry.image is not None:
        height_px, width_px = edit.source.shape[:2]
        settings = replace(settings, height_px=height_px, width_px=width_px)
    settings = entry.settings(settings)
    model = models.unchanged(settings)
    count = usual.count if entry.count is None else entry.count
    check_count(count)
    negative_prompt = entry.negative_prompt
    if negative_prompt is None:
        negative_prompt = usual.negative_prompt
    first = picture_metadata(
        model,
        entry.prompt,
        usual.seed if entry.seed is None else entry.seed,
        settings,
        negative_prompt=negative_prompt,
        edit=edit,
        variation=usual.variation,
    )
    pictures = count_up(models.record_changes(first, entry), count)
    seeds = [about.seed for about in pictures]
    check_request(model, [entry.prompt] * count, seeds, settings, [negative_prompt] * count)
    check_edit(model, edit, settings)
    for about in pictures:
        if about.variation is not None:
            check_seed(about.variation.seed)
    return pictures


def _distinct(
    entries: Sequence[PromptEntry], planned: Sequence[Sequence[PictureMetadata]]
) -> list[_Wanted]:
    """Each picture once, however many lines ask for it."""
    by_name: dict[str, _Wanted] = {}
    for entry, pictures in zip(entries, planned):
        for about in pictures:
            first = by_name.setdefault(about.file_name, _Wanted(about=about, entry=entry))
            if first.about != about:
                raise UserError(
                    f"{entry.place}: the picture would have the same file name as another of "
                    f"{first.entry.place}, {about.file_name}; change a word or the seed of one"
                )
    return list(by_name.values())


def _is_drawn(out: Path, about: PictureMetadata) -> bool:
    """Whether a whole picture is there that was asked for in the same way."""
    path = out / about.file_name
    if not path.exists():
        return False
    try:
        found = read_metadata(path)
    except UserError:  # damaged, or something else: drawn anew
        return False
    # How often its solver stepped is not known before, where it was drawn does not matter.
    wanted = to_json(about)
    for name in ("environment", "num_evaluations"):
        found.pop(name, None)
        wanted.pop(name, None)
    return found == wanted


def _draw(
    models: LineModels,
    edits: LineEdits,
    pictures: Sequence[_Wanted],
    out: Path,
    progress: OnProgress | None,
) -> None:
    done = 0
    for together in _in_groups(pictures):
        entry, about = together[0].entry, together[0].about
        others = f" and {len(together) - 1} pictures drawn with it" * (len(together) > 1)
        with telling(entry.place + others):
            edit, model = edits.again(entry, about), models.changed(entry, about)
            wanted = [each.about for each in together]
            counted = counted_from(done, len(pictures), progress)
            draw_to_files(model, wanted, out, edit=edit, progress=counted)
        done += len(together)


def _in_groups(pictures: Sequence[_Wanted]) -> Iterator[Sequence[_Wanted]]:
    """What can be drawn together, those with the same LoRAs one after another."""
    by_loras: dict[Any, dict[Any, list[_Wanted]]] = {}
    for wanted in pictures:
        about = wanted.about
        groups = by_loras.setdefault(about.loras, {})
        groups.setdefault((about.settings, about.edit), []).append(wanted)
    for groups in by_loras.values():
        for group in groups.values():
            for start in range(0, len(group), MAX_TOGETHER):
                yield group[start : start + MAX_TOGETHER]


def _write_index(
    out: Path, entries: Sequence[PromptEntry], planned: Sequence[Sequence[PictureMetadata]]
) -> None:
    with atomic_write(out / INDEX_FILE, "w") as file:
        for entry, pictures in zip(entries, planned):
            line: dict[str, Any] = {
                "source": entry.source,
                "line": entry.line,
                "prompt": entry.prompt,
                "files": [about.file_name for about in pictures],
            }
            if pictures[0].cut is not None:
                line["cut"] = pictures[0].cut
            file.write(json.dumps(line) + "\n")
