"""What training reads of a latent store: batches by step, fixed held-out batches, and its facts.

On the walk of a sample: `data.loader` -> here -> `training.loop`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectiflow.base.errors import ConfigError
from rectiflow.data.latent_store import LatentStore
from rectiflow.data.loader import BatchSource, Loader
from rectiflow.data.records import Batch
from rectiflow.data.split import split_store
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.parts_source import PartsSource
from rectiflow.training.recipe import TrainRecipe

HELD_OUT_SEED = 0
#: Held-out samples that are read at once.
HELD_OUT_BATCH_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """What a store knows about itself and a model trained on it must remember.

    `fingerprint` identifies what the store's samples are; `autoencoder` and `text` are the parts'
    fingerprints as the model's `model.json` carries them, and `parts` where these parts were, None
    for those that ship. `num_clip_tokens` is the length
    of the context's first part; `latent_shapes` are (channels, height, width), one for each
    bucket; `feature_dim` is the width of the features of patches, None where there are none.
    """

    fingerprint: str
    autoencoder: dict[str, Any]
    text: dict[str, str]
    world: str | None
    resolution_px: int
    context_dim: int
    pooled_dim: int
    num_clip_tokens: int
    latent_shapes: tuple[tuple[int, int, int], ...]
    feature_dim: int | None = None
    parts: PartsSource | None = None


class Feed(ABC):
    """Training data for one recipe."""

    facts: StoreFacts
    batch_size: int
    # The held-out samples, with keys that stay the same each time.
    validation: Sequence[Batch]

    @abstractmethod
    def batch_at(self, step: int) -> Batch:
        """The batch of one step, a pure function of the step."""

    def shard(self, rank: int, num_processes: int) -> BatchSource:
        """One process's part of every batch: joined by rank, the parts are the batch.

        Raises:
            ConfigError: the processes do not divide the batch.
        """
        if self.batch_size % num_processes:
            raise ConfigError(
                f"batch_size {self.batch_size} does not divide among {num_processes} processes; "
                "choose a multiple"
            )
        part = self.batch_size // num_processes
        return _Rows(whole=self, rows=slice(rank * part, (rank + 1) * part))


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """One process's rows of every batch, cut out of the whole one."""

    whole: BatchSource
    rows: slice

    def batch_at(self, step: int) -> Batch:
        return self.whole.batch_at(step)[self.rows]


class StoreFeed(Feed):
    """A latent store's samples: most for training, `num_validation` of them held out.

    Which are held out, and their noise and captions, is the same for every seed of a recipe, so
    that runs compare on equal terms.
    """

    def __init__(self, store: LatentStore, recipe: TrainRecipe) -> None:
        self.facts, self.batch_size = facts_of(store), recipe.batch_size
        refuse_unfit(self.facts, recipe)
        split = split_store(
            store.content_hashes, num_validation=recipe.num_validation, seed=HELD_OUT_SEED
        )
        self._loader = Loader(
            store,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            caption_mix=recipe.caption_mix,
            empty_prompt=recipe.empty_prompt,
            rows=split.train,
        )
        self.validation = ()
        if len(split.validation):
            held_out = Loader(
                store,
                batch_size=HELD_OUT_BATCH_SIZE,
                seed=HELD_OUT_SEED,
                caption_mix=recipe.caption_mix,
                rows=split.validation,
            )
            self.validation = tuple(held_out.in_order())

    def batch_at(self, step: int) -> Batch:
        return self._loader.batch_at(step)

    def shard(self, rank: int, num_processes: int) -> BatchSource:
        return self._loader.shard(rank, num_processes)


def open_feed(store: Path | str, recipe: TrainRecipe) -> StoreFeed:
    """The training data of a store for a recipe.

    Raises:
        StoreError: the store is missing, damaged, or lacks captions that the recipe uses.
        ConfigError: its shapes do not fit the recipe's backbone; or the recipe mixes in a prior,
            which is a second store.
    """
    if recipe.prior is not None:
        raise ConfigError(
            "prior mixes in samples of a second store, and one is given; fine-tune with "
            "`rectiflow finetune --prior …`, or train on a training.prior_feed.PriorFeed of both"
        )
    return StoreFeed(LatentStore(store), recipe)


def facts_of(store: LatentStore) -> StoreFacts:
    """A store's facts, from its header and index; no shard is read."""
    header = store.header
    features = header.latent_columns.get("features")
    widths = {name: column.shape[-1] for name, column in header.text_columns.items()}
    return StoreFacts(
        fingerprint=store.fingerprint,
        autoencoder={
            "name": "shapeworld" if header.parts is None else "released",
            "fingerprint": header.autoencoder,
        },
        text=header.text,
        world=header.world,
        resolution_px=header.resolution_px,
        context_dim=widths["t5.context"],
        pooled_dim=widths["clip_l.pooled"] + widths["clip_g.pooled"],
        num_clip_tokens=header.text_columns["clip_l.context"].shape[-2],
        latent_shapes=tuple(store.latent_shapes.values()),
        feature_dim=features.shape[0] if features is not None else None,
        parts=header.parts,
    )


def refuse_unfit(facts: StoreFacts, recipe: TrainRecipe) -> None:
    """Pass if the recipe's backbone takes what the store holds.

    Raises:
        ConfigError: a size differs; the text gives the one to set.
    """
    backbone = recipe.backbone
    channels = facts.latent_shapes[0][0]
    if recipe.resolution_px not in (None, facts.resolution_px):
        raise ConfigError(
            f"the store's resolution is {facts.resolution_px} px, the recipe {recipe.name!r} is "
            f"for {recipe.resolution_px} px; encode the pictures with --resolution "
            f"{recipe.resolution_px}"
        )
    if backbone.is_inpainting:
        raise ConfigError(
            f"backbone.out_channels is {backbone.out_channels}: it is for inpainting, and the "
            "store's rows have no masks to train that on; leave it out"
        )
    for name, own, theirs in (
        ("in_channels", backbone.in_channels, channels),
        ("context_dim", backbone.context_dim, facts.context_dim),
        ("pooled_dim", backbone.pooled_dim, facts.pooled_dim),
    ):
        if own != theirs:
            raise ConfigError(
                f"backbone.{name} is {own}, the store's rows have {theirs}; set it to {theirs}"
            )
    if isinstance(backbone, MMDiTConfig):
        own = backbone.num_clip_tokens
        if own not in (None, facts.num_clip_tokens):
            raise ConfigError(
                f"backbone.num_clip_tokens is {own}, the store's rows have {facts.num_clip_tokens} "
                f"tokens of CLIP; set it to {facts.num_clip_tokens}"
            )
    if recipe.alignment.is_on and facts.feature_dim != recipe.alignment.feature_dim:
        have = "has no features" if facts.feature_dim is None else f"has {facts.feature_dim}"
        raise ConfigError(
            f"alignment.feature_dim is {recipe.alignment.feature_dim}, the store {have}; encode "
            "the pictures with --features into a new folder, or set the width that is there"
        )
    p, side = backbone.patch_size, backbone.position_side
    for _, height, width in facts.latent_shapes:
        if height % p or width % p:
            raise ConfigError(
                f"the store's latents are {height}×{width}, not a multiple of backbone.patch_size "
                f"{p}; encode the pictures at another resolution"
            )
        if max(height, width) > side * p:
            raise ConfigError(
                f"the store's latents are {height}×{width}, {max(height, width) // p} tokens on a "
                f"side; raise backbone.position_side from {side}"
            )
