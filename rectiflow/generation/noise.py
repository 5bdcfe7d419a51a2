"""A picture's noise: what drawing starts from, and more where a solver adds some at each step.

On the walk of a prompt beside the prompts. All of it follows from the picture's seed, row by row,
so that it is the same alone, in any batch and on any device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from rectiflow.base import philox
from rectiflow.base.errors import UserError
from rectiflow.base.seeds import derive_seed
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.variations import Variation, turn_noise

#: Philox streams of a picture: of its first noise, and from which on of each step's.
START_STREAM = 0
FRESH_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Standard normal latents without end, float32, row i a function of keys[i] and a number alone.

    Where there are `towards` and `amounts`, all of row i is turned by amounts[i] to that of the key
    towards[i] (`generation.variations`).
    """

    shape: tuple[int, int, int]
    keys: Int64[Tensor, " n"]
    towards: Int64[Tensor, " n"] | None = None
    amounts: Float[Tensor, " n"] | None = None

    def start(self) -> Float32[Tensor, "n c h w"]:
        """What drawing starts from."""
        return self._draw(START_STREAM)

    def fresh(self, number: int) -> Float32[Tensor, "n c h w"]:
        """What a solver adds, other for each number from 0 on."""
        return self._draw(FRESH_STREAM + number)

    def __getitem__(self, rows: slice | Tensor) -> NoiseSource:
        return replace(
            self,
            keys=self.keys[rows],
            towards=None if self.towards is None else self.towards[rows],
            amounts=None if self.amounts is None else self.amounts[rows],
        )

    def _draw(self, stream: int) -> Tensor:
        noise = philox.normal(self.keys, self.shape, stream=stream)
        if self.towards is None or self.amounts is None:
            return noise
        towards = philox.normal(self.towards, self.shape, stream=stream)
        return turn_noise(noise, towards, self.amounts.tolist())


def noise_source(
    model: Model,
    seeds: Sequence[int],
    settings: SamplingSettings,
    variations: Sequence[Variation] | None = None,
) -> NoiseSource:
    """The noise of pictures with these seeds, and of their variations.

    Raises:
        UserError: seeds and variations differ in number, or a variation's seed is out of range.
    """
    factor = model.autoencoder.config.downsample_factor
    source = NoiseSource(
        shape=(
            model.backbone.config.latent_channels,
            settings.height_px // factor,
            settings.width_px // factor,
        ),
        keys=_keys(seeds),
    )
    if variations is None:
        return source
    if len(variations) != len(seeds):
        raise UserError(
            f"{len(variations)} variations came with {len(seeds)} seeds; give one for each, or "
            "none at all"
        )
    for variation in variations:
        check_seed(variation.seed)
    return replace(
        source,
        towards=_keys([variation.seed for variation in variations]),
        amounts=torch.tensor([variation.amount for variation in variations], dtype=torch.float64),
    )


def initial_noise(
    model: Model,
    seeds: Sequence[int],
    settings: SamplingSettings,
    variations: Sequence[Variation] | None = None,
) -> Float[Tensor, "n c h w"]:
    """What drawing starts from, on the model's device; raises as `noise_source`."""
    return noise_source(model, seeds, settings, variations).start().to(model.device)


def source_behind(noise: Float[Tensor, "n c h w"]) -> NoiseSource:
    """More noise for rows whose first came from elsewhere: a function of each row's own values."""
    rows = noise.detach().to("cpu", torch.float32).contiguous()
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in rows]
    return NoiseSource(
        shape=(rows.shape[1], rows.shape[2], rows.shape[3]),
        keys=_keys([int.from_bytes(digest[:8], "little") >> 1 for digest in digests]),
    )


def check_seed(seed: int) -> None:
    """Pass if it is one.

    Raises:
        UserError: it is out of range.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is out of range; give a whole number from 0 to 2^63 - 1")


def _keys(seeds: Sequence[int]) -> Int64[Tensor, " n"]:
    return torch.tensor([derive_seed(seed, "picture") for seed in seeds], dtype=torch.int64)
