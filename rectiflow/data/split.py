"""Which samples of a store are held out for validation: a pure function of contents and seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.base.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sample numbers for training and for validation, each in rising order; together all."""

    train: Int[Tensor, " n"]
    validation: Int[Tensor, " m"]


def split_store(contents: Sequence[str], *, num_validation: int, seed: int) -> Split:
    """Hold out `num_validation` samples so that no picture stands on both sides.

    Samples with the same content go to the same side. Contents have an order that each one's own
    hash with the seed gives, and are held out while they fit, so that many copies of one picture
    may leave the number short. So the order of samples, of encoding and of files on the disk does
    not matter, and what is added to a store hardly moves the rest.

    Args:
        contents: for each sample what identifies its picture: `LatentStore.content_hashes`.
        num_validation: samples to hold out, 0 or more.
        seed: names the draw.

    Raises:
        ConfigError: the number is negative, or nothing would be left to train on.
    """
    if num_validation < 0:
        raise ConfigError(f"num_validation is {num_validation}; it must be 0 or more")
    if num_validation >= len(contents):
        raise ConfigError(
            f"num_validation is {num_validation}, but the store has {len(contents)} samples and "
            "training needs at least one; hold out fewer"
        )
    sizes = Counter(contents)
    held_out: set[str] = set()
    missing = num_validation
    for content in sorted(sizes, key=lambda each: (derive_seed(seed, "split", each), each)):
        if missing == 0:
            break
        if sizes[content] <= missing:
            held_out.add(content)
            missing -= sizes[content]
    is_held_out = torch.tensor([content in held_out for content in contents])
    return Split(
        train=(~is_held_out).nonzero().squeeze(1), validation=is_held_out.nonzero().squeeze(1)
    )
