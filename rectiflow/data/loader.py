"""Batches of a latent store by step: which samples, in which order, with which caption.

On the walk of a sample: latent store → here → training step. Everything is a pure function of
(seed, step) and sizes (`data.order`), so that the loader's whole state is the step. A batch holds
samples of one bucket and may span epochs; nothing is ever dropped or repeated within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from rectiflow.base import philox
from rectiflow.base.errors import ConfigError
from rectiflow.base.philox import keys_for
from rectiflow.data.caption_mix import (
    caption_weights,
    check_every_sample_has_caption,
    choose_captions,
)
from rectiflow.data.latent_store import EMPTY_PROMPT, LatentStore
from rectiflow.data.order import BatchOrder
from rectiflow.data.records import Batch

#: The Philox stream of a sample's key that decides whether it shows the empty prompt.
EMPTY_PROMPT_STREAM = 14


class Loader:
    """Endless batches of a store, or of the part `rows` of it.

    Args:
        store: where the rows lie.
        batch_size: samples in a global batch.
        seed: names the order, the keys and so every choice.
        caption_mix: weight of each caption variant; by default all weigh the same.
        empty_prompt: probability with which a sample shows the empty prompt instead of a caption.
        rows: the samples to use, by default all.

    Raises:
        ConfigError: an empty part, a batch size below 1, a mix that does not fit the store, or a
            probability outside [0, 1].
        StoreError: a sample has none of the captions that the mix uses.
    """

    def __init__(
        self,
        store: LatentStore,
        *,
        batch_size: int,
        seed: int,
        caption_mix: Mapping[str, float] | None = None,
        empty_prompt: float = 0.0,
        rows: Int[Tensor, " n"] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0.0 <= empty_prompt <= 1.0:
            raise ConfigError(f"empty_prompt is {empty_prompt}; give a probability from 0 to 1")
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self._empty_prompt = empty_prompt
        self.rows = torch.arange(len(store)) if rows is None else rows
        if not len(self.rows):
            raise ConfigError("there are no samples to load; hold out fewer for validation")
        self._weights = caption_weights(caption_mix, store.variants)
        check_every_sample_has_caption(self._weights, store.text_rows, self.rows, store.variants)
        self._buckets = store.buckets[self.rows]
        self._order = BatchOrder(self._buckets, batch_size=batch_size, seed=seed)
        self._rank, self._world_size = 0, 1

    def shard(self, rank: int, world_size: int) -> Loader:
        """This rank's part of every batch: joined in rank order, the parts are the batch.

        Raises:
            ConfigError: the ranks do not divide the batch, or there is no such rank.
        """
        if world_size < 1 or self.batch_size % world_size:
            raise ConfigError(
                f"batch_size {self.batch_size} does not divide among {world_size} ranks; choose a "
                "multiple"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank}; it must be in [0, {world_size})")
        part = object.__new__(Loader)
        part.__dict__.update(self.__dict__, _rank=rank, _world_size=world_size)
        return part

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, counted from 0.

        Raises:
            ValueError: a negative step.
            StoreError: a shard is missing, cut or changed.
        """
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        size = self.batch_size // self._world_size
        pieces = self._order.batch(step)
        indices = torch.cat([self.rows[places] for _, places in pieces])
        keys = torch.cat(
            [
                keys_for(self.seed, "sample", epoch, indices=self.rows[places])
                for epoch, places in pieces
            ]
        )
        first = self._rank * size
        own = slice(first, first + size)
        positions = step * self.batch_size + torch.arange(first, first + size)
        return self._read(indices[own], keys[own], positions)

    def in_order(self) -> Iterator[Batch]:
        """The samples once, bucket by bucket, with keys that are the same each time.

        For validation. Within a bucket they come in the order of `rows`; its last batch may be
        smaller.
        """
        for bucket in self._buckets.unique():
            for positions in (self._buckets == bucket).nonzero().squeeze(1).split(self.batch_size):
                indices = self.rows[positions]
                keys = keys_for(self.seed, "in order", indices=indices)
                yield self._read(indices, keys, positions)

    def _read(
        self, indices: Int[Tensor, " b"], keys: Int[Tensor, " b"], positions: Int[Tensor, " b"]
    ) -> Batch:
        variants = choose_captions(keys, self._weights, self.store.text_rows[indices])
        is_empty = philox.uniform(keys, 1, stream=EMPTY_PROMPT_STREAM)[:, 0] < self._empty_prompt
        variants = torch.where(is_empty, EMPTY_PROMPT, variants)
        rows = self.store.read(indices, variants)
        return Batch(
            x0_mean=rows.x0_mean,
            x0_logvar=rows.x0_logvar,
            encoded_text=rows.encoded_text,
            features=rows.features,
            indices=indices,
            keys=keys,
            positions=positions,
        )


@runtime_checkable
class BatchSource(Protocol):
    """Where batches come from, step by step."""

    def batch_at(self, step: int) -> Batch:
        """The rows of one step, a pure function of the step."""
        ...


class Prefetcher:
    """Reads the next batch in a thread while the caller uses this one.

    The batches are the source's own, whatever order they are asked for in. No two are read at once.
    """

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def batch_at(self, step: int, *, then: int | None) -> Batch:
        """The source's batch of `step`; begins to read that of `then`, which is asked for next.

        Without `then` nothing is read but what is asked for, and in the caller's thread.

        Raises:
            Whatever the source raises for this step, only now if it was read ahead.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            batch = ahead[1].result()
        else:
            if ahead is not None:
                wait([ahead[1]])
            batch = self._source.batch_at(step)
        if then is not None:
            self._ahead = then, self._thread.submit(self._source.batch_at, then)
        return batch

    def close(self) -> None:
        """Ends the thread, after the batch that it is reading."""
        self._thread.shutdown(cancel_futures=True)
