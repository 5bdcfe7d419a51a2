"""Which of its captions a sample shows: a pure function of the sample's key and the mix.

SD3 trains on original and synthetic captions half and half (arXiv 2403.03206, section 4). All
variants are stored, so the mix can change without encoding anything again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from rectiflow.base import philox
from rectiflow.base.errors import ConfigError, StoreError

#: The loader's Philox stream of a sample's key; training draws from others.
CAPTION_STREAM = 15


def caption_weights(
    mix: Mapping[str, float] | None, variants: Sequence[str]
) -> Float64[Tensor, " v"]:
    """The weight of each of a store's caption variants; without a mix all weigh the same.

    Raises:
        ConfigError: the mix names a variant that the store lacks, a weight is negative or not
            finite, or all are 0.
    """
    if mix is None:
        return torch.ones(len(variants), dtype=torch.float64)
    for name, weight in mix.items():
        if name not in variants:
            raise ConfigError(
                f"caption_mix names the variant {name!r}; the store has: {', '.join(variants)}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"caption_mix has the weight {weight} for {name!r}; give 0 or more")
    if not any(mix.values()):
        raise ConfigError("caption_mix has no weight above 0; no caption could be chosen")
    return torch.tensor([mix.get(name, 0.0) for name in variants], dtype=torch.float64)


def check_every_sample_has_caption(
    weights: Float64[Tensor, " v"],
    text_rows: Int[Tensor, "n v"],
    rows: Int[Tensor, " m"],
    variants: Sequence[str],
) -> None:
    """Pass when each of the samples `rows` has a caption of a variant with weight.

    Raises:
        StoreError: one has not; the text says how many.
    """
    has_one = ((text_rows[rows] >= 0) & (weights > 0)).any(dim=1)
    if not bool(has_one.all()):
        used = [name for name, weight in zip(variants, weights.tolist()) if weight > 0]
        raise StoreError(
            f"{int((~has_one).sum())} samples of the store have none of the captions that "
            f"caption_mix uses ({', '.join(used)}); give another variant some weight"
        )


def choose_captions(
    keys: Int[Tensor, " b"], weights: Float64[Tensor, " v"], text_rows: Int[Tensor, "b v"]
) -> Int[Tensor, " b"]:
    """The position of the chosen variant of each sample.

    A variant that a sample lacks has no weight there; the others keep their proportions.
    """
    available = torch.where(text_rows >= 0, weights, 0.0)
    total = available.cumsum(dim=1)
    u = philox.uniform(keys, 1, stream=CAPTION_STREAM).double()
    # The first variant whose running total exceeds u·(sum of the weights).
    return (u * total[:, -1:] >= total).sum(dim=1)
