"""What the lines of a list are drawn with and from: their models, and the pictures they start from.

Beside `generation.draw_list`, which plans all lines before it draws one. A plan needs to know what
files are, not to hold them: LoRAs are merged, and pictures read again, when their line is drawn.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache

from rectiflow.base.errors import UserError
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.edit_files import read_edit, read_mask
from rectiflow.generation.editing import STRENGTH, Edit
from rectiflow.generation.folder import Warn
from rectiflow.generation.load_settings import LoadedLora
from rectiflow.generation.loras import read_loras
from rectiflow.generation.metadata import PictureMetadata
from rectiflow.generation.model import Model, WeakerModel, with_weaker
from rectiflow.generation.prompt_list import PromptEntry
from rectiflow.generation.settings import SamplingSettings


@contextmanager
def telling(place: str) -> Generator[None]:
    """Begins whatever a user can fix with the place where it stands: a line, a key in it."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error


class LineModels:
    """The model as lines ask for it, with their LoRAs and the weaker one of their guidance."""

    def __init__(self, plain: Model, usual: ModelChanges, warn: Warn) -> None:
        self._plain, self._usual, self._warn = plain, usual, warn
        self._weaker: dict[str | None, WeakerModel | Model | None] = {}
        self._loaded: dict[ModelChanges, tuple[LoadedLora, ...]] = {}
        # One set of LoRAs is in memory at a time.
        self._change = lru_cache(maxsize=1)(self._change_once)

    def unchanged(self, settings: SamplingSettings) -> Model:
        """Without LoRAs, as it is planned with; a weaker model is loaded once for all lines.

        Raises:
            UserError: as `with_weaker`.
        """
        return self._guided(self._plain, settings)

    def record_changes(self, about: PictureMetadata, entry: PromptEntry) -> PictureMetadata:
        """What a picture of the line will say of the changes to its model.

        Raises:
            UserError, CheckpointError: as `read_loras`.
        """
        changes = self._changes(entry)
        if changes.loras and changes not in self._loaded:
            with telling('"lora"') if entry.loras else nullcontext():
                read = read_loras(self._plain, changes.loras)
            self._loaded[changes] = tuple(lora.loaded for lora in read)
        return replace(
            about,
            loras=self._loaded.get(changes, about.loras),
            quantization=changes.quantization or about.quantization,
            is_compiled=changes.is_compiled or about.is_compiled,
        )

    def changed(self, entry: PromptEntry, about: PictureMetadata) -> Model:
        """As a planned picture of the line is drawn with it.

        Raises:
            UserError, CheckpointError: as `ModelChanges.of`, or a LoRA is another one meanwhile.
        """
        model = self._change(self._changes(entry))
        _refuse_another(about.loras, model.loras)
        return self._guided(model, about.settings)

    def _changes(self, entry: PromptEntry) -> ModelChanges:
        return self._usual if entry.loras is None else replace(self._usual, loras=entry.loras)

    def _change_once(self, changes: ModelChanges) -> Model:
        model = changes.of(self._plain)
        if changes.quantization is not None:
            self._warn(str(model.quantization))
        return model

    def _guided(self, model: Model, settings: SamplingSettings) -> Model:
        name = settings.guidance.weaker_model
        if name not in self._weaker:
            self._weaker[name] = with_weaker(model, settings).weaker
        return replace(model, weaker=self._weaker[name])


class LineEdits:
    """The edit that each line starts from: its own, the one for all lines, or that one changed."""

    def __init__(self, usual: Edit | None) -> None:
        self._usual = usual
        # Neighbouring lines often start from one picture.
        self._read = lru_cache(maxsize=1)(read_edit)

    def of(self, entry: PromptEntry) -> Edit | None:
        """The line's edit, or None.

        Raises:
            UserError: a file cannot be used, or the line changes a picture that there is not.
            ConfigError: as `Edit`.
        """
        changed = {"mask": entry.mask, "strength": entry.strength}
        names = [name for name, value in changed.items() if value is not None]
        usual = self._usual
        if entry.image is not None:
            strength = entry.strength
            if strength is None:
                strength = STRENGTH if usual is None else usual.strength
            with telling('"image"' if entry.mask is None else '"image" and "mask"'):
                return self._read(entry.image, entry.mask, strength=strength)
        if not names:
            return usual
        if usual is None:
            raise UserError(f'"{names[0]}" goes with "image", the picture to draw from')
        if entry.strength is not None:
            usual = replace(usual, strength=entry.strength)
        if entry.mask is not None:
            with telling('"mask"'):
                usual = replace(usual, mask=read_mask(entry.mask), mask_name=entry.mask.name)
        return usual

    def again(self, entry: PromptEntry, about: PictureMetadata) -> Edit | None:
        """The edit of a line that was planned, whose files may have changed meanwhile.

        Raises:
            UserError: as `of`, or they have.
        """
        edit = self.of(entry)
        _refuse_another(about.edit, edit and edit.reference)
        return edit


def _refuse_another(planned: object, found: object) -> None:
    if found != planned:
        raise UserError(
            "a picture, mask or LoRA was changed while the list was drawn; give the same command "
            "again, and leave the files alone until it is done"
        )
