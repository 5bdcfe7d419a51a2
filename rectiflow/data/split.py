"""Which samples of a store are held out for validation: a pure function of contents and seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.base.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sample numbers for training and for validation, each in rising order; together all."""

    train: Int[Tensor, " n"]
    validation: Int[Tensor, " m"]


def split_store(contents: Int[Tensor, " n"], *, num_validation: int, seed: int) -> Split:
    """Hold out `num_validation` samples so that no picture stands on both sides.

    Samples with the same content go to the same side. Contents are drawn in random order and held
    out while they fit, so that many copies of one picture may leave the number short.

    Args:
        contents: a number for each sample, equal for equal pictures: `LatentStore.latent_rows`.
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
    _, group, sizes = contents.unique(return_inverse=True, return_counts=True)
    order = numpy_generator(seed, "split").permutation(len(sizes))
    is_held_out = torch.zeros(len(sizes), dtype=torch.bool)
    missing = num_validation
    for content in order.tolist():
        if missing == 0:
            break
        size = int(sizes[content])
        if size <= missing:
            is_held_out[content] = True
            missing -= size
    held_out = is_held_out[group]
    return Split(train=(~held_out).nonzero().squeeze(1), validation=held_out.nonzero().squeeze(1))
