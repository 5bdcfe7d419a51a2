"""How a fine-tuned pipeline was drawn with and trained on, for which its own layout has no place.

A file in the pipeline's folder; other tools leave it alone. Format: `docs/formats.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rectiflow.base.config import load_config, save_config
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.settings import CardSampling

DRAWN_WITH_FILE = "drawn_with.json"


@dataclass(frozen=True, kw_only=True)
class DrawnWith:
    """Sampling, the text encoders in use, and the tokens of T5 or the zeros that stand for it."""

    sampling: CardSampling
    encoders: tuple[str, ...]
    t5_tokens: int

    def save(self, folder: Path) -> None:
        """Write it into a pipeline's folder."""
        save_config(folder / DRAWN_WITH_FILE, self)

    def fill_in(self, settings: LoadSettings) -> LoadSettings:
        """The settings, with these encoders and as many tokens where they do not say."""
        encoders = self.encoders if settings.encoders is None else settings.encoders
        tokens = settings.t5_tokens
        if tokens is None and ("t5" in encoders) == ("t5" in self.encoders):
            tokens = self.t5_tokens
        return replace(settings, encoders=encoders, t5_tokens=tokens)


def read_drawn_with(folder: Path) -> DrawnWith | None:
    """What a pipeline's folder says; None where it says nothing, as most do.

    Raises:
        ConfigError: the file is not what `save` writes.
    """
    path = folder / DRAWN_WITH_FILE
    return load_config(path, DrawnWith) if path.is_file() else None
