"""What `rectiflow finetune` is asked for, and whether a run was begun with the same.

Before the walk of a sample.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from rectiflow.base.errors import UserError
from rectiflow.data.folder import FolderListing, NoCaptionsError, list_folder
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.model import Model
from rectiflow.training.fine_tuning import LoraTraining


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What to fine-tune, on what, and how.

    `caption` is for pictures that have none. Without `lora` all weights are trained. The prior's
    pictures lie in `prior`, where `prior_prompt` is the caption of those that have none, or the
    model draws `prior_count` of them for `prior_prompt` before training. None is the usual.

    Raises:
        UserError: the prior's settings do not go together.
    """

    model: str
    data: Path
    out: Path
    caption: str | None = None
    lora: LoraTraining | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 4
    resolution_px: int | None = None
    prior: Path | None = None
    prior_prompt: str | None = None
    prior_count: int | None = None
    prior_weight: float = 1.0
    sample_prompts: tuple[str, ...] = ()
    sample_every: int = 100
    seed: int = 0
    load: LoadSettings = field(default_factory=LoadSettings)

    def __post_init__(self) -> None:
        if self.prior is not None and self.prior_count is not None:
            raise UserError(
                "--prior gives the prior's pictures and --prior-count has them drawn; give one"
            )
        if self.prior_count is not None and self.prior_prompt is None:
            raise UserError("--prior-count needs the prompt to draw them for (--prior-prompt)")
        if self.prior_prompt is not None and (self.prior, self.prior_count) == (None, None):
            raise UserError(
                "--prior-prompt needs a folder of such pictures (--prior), or how many the model "
                "shall draw (--prior-count)"
            )
        if self.prior_weight != 1.0 and not self.has_prior:
            raise UserError(
                "--prior-weight goes with pictures of a prior (--prior, or --prior-prompt and "
                "--prior-count)"
            )

    @property
    def has_prior(self) -> bool:
        return self.prior is not None or self.prior_count is not None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepared/` was made from: hashes of model, pictures and prior, and the resolution."""

    model: str
    data: str
    resolution_px: int
    prior: str | None


def list_captioned(folder: Path, caption: str | None, example: str) -> FolderListing:
    """As `list_folder`, but a folder without captions is offered one for all, as in `example`."""
    try:
        return list_folder(folder, caption=caption)
    except NoCaptionsError as error:
        raise UserError(f"{error}; or give one caption for all of them: {example}") from error


def hash_listing(listing: FolderListing) -> str:
    """Changes with the pictures' names and sizes, and with their captions."""
    rows = [
        [entry.file, dict(entry.captions), (listing.folder / entry.file).stat().st_size]
        for entry in listing.entries
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def hash_prior(request: FineTuning, listing: FolderListing | None, model: Model) -> str | None:
    """Of a folder's listing, or of what decides the pictures that `model` draws; None without."""
    if listing is not None:
        return hash_listing(listing)
    if request.prior_count is None:
        return None
    drawn = [
        *(model.digest, model.resolution_px),
        *(request.prior_prompt, request.prior_count, request.seed),
    ]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


_SAID_BY = {
    "model": "MODEL",
    "data": "pictures or captions in --data",
    "resolution_px": "--resolution",
    "prior": "pictures of the prior (--prior, or --prior-prompt, --prior-count and --seed)",
}


def refuse_other(run: Path, before: Prepared, now: Prepared) -> None:
    """Pass if a run may go on.

    Raises:
        UserError: it was prepared from something else; the text says from what.
    """
    for name, said_by in _SAID_BY.items():
        if getattr(before, name) != getattr(now, name):
            raise UserError(
                f"{run} was begun with other {said_by}; a run keeps to what it began with, so "
                "give the same again, or choose another run folder"
            )
