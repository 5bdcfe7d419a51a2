"""What training reads of a latent store: batches by step, fixed held-out batches, and its facts.

On the walk of a sample: `data.loader` -> here -> `training.loop`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rectiflow.training.step import TrainBatch


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """What a store knows about itself and a model trained on it must remember.

    `fingerprint` identifies the store's whole content; `autoencoder` and `text` are the parts'
    fingerprints as the model's `model.json` carries them.
    """

    fingerprint: str
    autoencoder: dict[str, Any]
    text: dict[str, str]
    world: str | None
    resolution_px: int
    context_dim: int
    pooled_dim: int
    latent_channels: int


class Feed(ABC):
    """Training data for one recipe."""

    facts: StoreFacts
    # The held-out samples, with keys that stay the same each time.
    validation: Sequence[TrainBatch]

    @abstractmethod
    def batch_at(self, step: int) -> TrainBatch:
        """The batch of one step, a pure function of the step."""


def open_feed(store, recipe):
    raise NotImplementedError
