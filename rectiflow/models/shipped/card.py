"""A part's card: what made it, how well it does, and the hash of every file beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectiflow.base.config import LATER, load_config, save_config
from rectiflow.base.errors import CheckpointError
from rectiflow.base.files import sha256_file

CARD_FILE = "card.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where a part comes from and what it reaches; `hashes` maps relative paths to SHA-256."""

    recipe: dict[str, Any]
    commit: str
    data: dict[str, Any]
    scores: dict[str, Any]
    hashes: dict[str, str]
    fingerprints: dict[str, str] | None = field(default=None, metadata=LATER)
    """Of the text encoders by name, as `TextConditioner.fingerprints` reads them off weights."""


def write_card(
    folder: Path | str,
    *,
    recipe: dict[str, Any],
    commit: str,
    data: dict[str, Any],
    scores: dict[str, Any],
    fingerprints: dict[str, str] | None = None,
) -> Card:
    """Hash every file of a finished part and write its card beside them.

    Raises:
        UserError: the card cannot be written.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD_FILE)
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    card = Card(
        recipe=recipe,
        commit=commit,
        data=data,
        scores=scores,
        hashes=hashes,
        fingerprints=fingerprints,
    )
    save_config(folder / CARD_FILE, card)
    return card


def read_card(folder: Path | str) -> Card:
    """A part's card.

    Raises:
        UserError: it is missing or unreadable.
        ConfigError: it is not a card.
    """
    return load_config(Path(folder) / CARD_FILE, Card)


def verify(folder: Path | str) -> Card:
    """Check every file that the card lists and return the card.

    Raises:
        UserError: the card is missing or unreadable.
        CheckpointError: a listed file is missing or its bytes differ.
    """
    folder = Path(folder)
    card = read_card(folder)
    for name, expected in card.hashes.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though its card lists it; install again")
        found = sha256_file(path)
        if found != expected:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is {found[:12]}…, its card says "
                f"{expected[:12]}…; install again"
            )
    return card
