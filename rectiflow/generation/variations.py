"""Variations of a picture: its noise turned a little towards another seed's.

On the walk of a prompt between noise and latents. On the arc between them noise stays as long as
noise is, which on the straight line it would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How far, from 0 (not at all) to 1 (all the way), the noise turns towards that of `seed`."""

    seed: int
    amount: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.amount <= 1.0:
            raise ConfigError(
                f"amount={self.amount} must be from 0 (the picture itself) to 1 (the picture of "
                "the variation's seed); 0.1 to 0.3 is usual"
            )


def turn_noise(
    noise: Float[Tensor, "n ..."], towards: Float[Tensor, "n ..."], amounts: Sequence[float]
) -> Float[Tensor, "n ..."]:
    """Row by row, the spherical interpolation from `noise` to `towards`; exact at both ends.

    slerp(a, b, s) = (sin((1 − s)·ω)·a + sin(s·ω)·b)/sin ω with the angle ω between a and b.
    """
    rows = [_slerp(a, b, s) for a, b, s in zip(noise, towards, amounts, strict=True)]
    return torch.stack(rows)


def _slerp(a: Tensor, b: Tensor, amount: float) -> Tensor:
    # One row at a time, so that no sum depends on the batch; equal rows have no angle.
    if amount == 0.0 or torch.equal(a, b):
        return a
    if amount == 1.0:
        return b
    x, y = a.double(), b.double()
    cosine = (x * y).sum() / (x.norm() * y.norm())
    angle = math.acos(min(1.0, max(-1.0, cosine.item())))
    turned = math.sin((1.0 - amount) * angle) * x + math.sin(amount * angle) * y
    return (turned / math.sin(angle)).to(a.dtype)
