"""Frozen parts that ship with the package, each checked byte by byte when it is loaded.

A part is a folder here with `card.json`: the recipe, commit and data that made it, its scores, and
the SHA-256 of every file. Parts: "text" (three encoders, image tower), "autoencoder", and the
models "tiny" and "tiny-mmdit".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rectiflow.base.errors import UserError
from rectiflow.models.shipped.card import Card, read_card, verify, write_card
from rectiflow.models.text.encoded import ENCODERS, choose_encoders

if TYPE_CHECKING:
    from rectiflow.models.autoencoder import Autoencoder
    from rectiflow.models.text.cache import CachedConditioner
    from rectiflow.models.text.conditioner import TextConditioner
    from rectiflow.models.vision.image_tower import ImageTower

__all__ = [
    "Card",
    "load_autoencoder",
    "load_conditioner",
    "load_image_tower",
    "load_prompt_encoder",
    "read_card",
    "shipped_path",
    "verify",
    "write_card",
]

_ROOT = Path(__file__).parent
#: A prompt, what to lead away from, and the empty one; a list is encoded faster than it is kept.
_MAX_KEPT = 3


def shipped_path(name: str) -> Path:
    """The folder of a shipped part, verified.

    Raises:
        UserError: no such part ships.
        CheckpointError: a file of it is missing or damaged.
    """
    folder = _ROOT / name
    if not (folder / "card.json").is_file():
        have = sorted(path.parent.name for path in _ROOT.glob("*/card.json"))
        raise UserError(
            f"no part named {name!r} ships with rectiflow; there are: {', '.join(have) or 'none'}"
        )
    verify(folder)
    return folder


def load_autoencoder() -> Autoencoder:
    """The embedded autoencoder: 16 channels at an eighth of the side.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from rectiflow.models.autoencoder.files import load_autoencoder_folder

    return load_autoencoder_folder(shipped_path("autoencoder"))


def load_conditioner(encoders: Sequence[str] = ENCODERS) -> TextConditioner:
    """The embedded text encoders, or some of them; those left out give zeros.

    Raises:
        UserError: an unknown encoder.
        CheckpointError: a file is missing or damaged.
    """
    # transformers takes seconds to import; parts that do without it should load without it.
    from rectiflow.models.text.loading import load_text_folder

    return load_text_folder(shipped_path("text"), encoders=encoders)


def load_prompt_encoder(encoders: Sequence[str] = ENCODERS) -> CachedConditioner:
    """The embedded text encoders, which load when a prompt comes that was never encoded here.

    Raises:
        UserError, CheckpointError: as `load_conditioner`.
    """
    from tokenizers import Tokenizer

    from rectiflow.base.config import load_config
    from rectiflow.models.text.cache import CachedConditioner
    from rectiflow.models.text.conditioner import CONFIG_FILE, FOLDERS, TextConditionerConfig

    chosen, folder = choose_encoders(encoders), shipped_path("text")
    known = read_card(folder).fingerprints or {}
    fingerprints = {name: known[name] for name in chosen}
    return CachedConditioner(
        config=load_config(folder / CONFIG_FILE, TextConditionerConfig),
        tokenizers={
            name: Tokenizer.from_file(str(folder / FOLDERS[name][1] / "tokenizer.json"))
            for name in chosen
        },
        identity=json.dumps(fingerprints),
        load=lambda: load_conditioner(chosen),
        fingerprints=fingerprints,
        max_kept=_MAX_KEPT,
    )


def load_image_tower() -> ImageTower:
    """The embedded image tower, which pairs with the embedded `clip_g`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from rectiflow.models.vision.image_tower import load_image_tower_folder

    return load_image_tower_folder(shipped_path("text") / "image_tower")
