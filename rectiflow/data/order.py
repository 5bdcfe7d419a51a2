"""Which samples make which batch, where every batch holds samples of one bucket.

On the walk of a sample: the loader asks here what a step reads. The samples of all epochs form one
endless stream, each epoch a permutation of its own. Along it each sample joins the queue of its
bucket, and a queue that has a batch's samples becomes the next batch. So what is left over at an
epoch's end is not dropped, padded or repeated: it heads the bucket's next batch, with the next
epoch's first. All is a pure function of (seed, step, sizes); one bucket alone is cut end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from rectiflow.base.seeds import numpy_generator


@lru_cache(maxsize=4)
def sample_order(seed: int, epoch: int, num_samples: int) -> Int[Tensor, " n"]:
    """The permutation of 0 … num_samples − 1 in which an epoch visits its samples."""
    return torch.from_numpy(numpy_generator(seed, "order", epoch).permutation(num_samples))


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """One epoch of the stream.

    `places` has the samples of each bucket in the order of their visit; `filled` has a row for each
    batch that fills in this epoch: bucket, and number among the bucket's batches.
    """

    places: tuple[Int[Tensor, " _"], ...]
    filled: Int[Tensor, "f 2"]


class BatchOrder:
    """The endless sequence of batches of samples 0 … n − 1.

    Law: at any step each sample has been in all batches so far as often as any other of its bucket,
    or once more or less; joined, a bucket's batches are its samples once an epoch.

    Args:
        bucket_of: each sample's bucket, a number from 0.
        batch_size: samples in a batch, at least 1; more than a bucket has are of several epochs.
        seed: names the permutations.
    """

    def __init__(self, bucket_of: Int[Tensor, " n"], *, batch_size: int, seed: int) -> None:
        self._bucket_of, self._batch_size, self._seed = bucket_of, batch_size, seed
        self._counts: list[int] = bucket_of.bincount().tolist()
        # The two epochs last asked for: the next batch may have begun in the one before.
        self._seen: dict[int, _Epoch] = {}

    def batch(self, step: int) -> list[tuple[int, Int[Tensor, " _"]]]:
        """The samples of a batch, in order: (epoch, samples) for each epoch that it spans."""
        epoch = self._epoch_of(step)
        bucket, number = self._at(epoch).filled[step - self._num_before(epoch)].tolist()
        start, stop = number * self._batch_size, (number + 1) * self._batch_size
        pieces: list[tuple[int, Int[Tensor, " _"]]] = []
        while start < stop:
            epoch, offset = divmod(start, self._counts[bucket])
            end = min(self._counts[bucket], offset + stop - start)
            pieces.append((epoch, self._at(epoch).places[bucket][offset:end]))
            start += end - offset
        return pieces

    def _num_before(self, epoch: int) -> int:
        """How many batches fill before an epoch."""
        return sum(epoch * count // self._batch_size for count in self._counts)

    def _epoch_of(self, step: int) -> int:
        """The epoch in which a step's batch fills."""
        # No earlier one, as so many samples must have been visited.
        epoch = step * self._batch_size // sum(self._counts)
        while self._num_before(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _at(self, epoch: int) -> _Epoch:
        found = self._seen.get(epoch)
        if found is None:
            found = self._lay_out(epoch)
            # Replaced, not changed: a prefetching thread may be reading it.
            self._seen = dict([*self._seen.items()][-1:]) | {epoch: found}
        return found

    def _lay_out(self, epoch: int) -> _Epoch:
        order = sample_order(self._seed, epoch, len(self._bucket_of))
        buckets = self._bucket_of[order]
        places: list[Tensor] = []
        filled: list[Tensor] = []
        for bucket, count in enumerate(self._counts):
            visits = (buckets == bucket).nonzero().squeeze(1)
            places.append(order[visits])
            # So many of the bucket have been visited with this visit, in all epochs.
            visited = epoch * count + 1 + torch.arange(count)
            is_full = visited % self._batch_size == 0
            number = visited[is_full] // self._batch_size - 1
            filled.append(
                torch.stack([visits[is_full], torch.full_like(number, bucket), number], dim=1)
            )
        events = torch.cat(filled)
        return _Epoch(places=tuple(places), filled=events[events[:, 0].argsort(), 1:])
