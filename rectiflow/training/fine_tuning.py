"""What a fine-tuning run does beside training: low-rank updates, prior preservation, its export.

Parts of a `TrainRecipe`, which the state, the feed and the export read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from rectiflow.base.errors import ConfigError

#: Our own `model.json` with weights, or the folder of a diffusers pipeline.
ExportLayout = Literal["own", "diffusers"]


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """Train low-rank updates of the joint attention's projections; the model itself is frozen.

    `rank` is also alpha. `hold_base` is what the frozen weights are held in: "bf16" takes half the
    memory, and rounds weights that have more digits. Source: arXiv 2106.09685, section 4.

    Raises:
        ConfigError: a rank below 1.
    """

    rank: int
    hold_base: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank is {self.rank}; it must be at least 1, 4 to 64 is usual")

    @property
    def base_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.hold_base == "bf16" else torch.float32


@dataclass(frozen=True, kw_only=True)
class PriorPreservation:
    """Keep what the model knows of a class while it learns one member of it.

    A `share` of every batch are pictures of the class, such as the model itself draws of it, and
    loss = mean over the instance's samples + weight · mean over the prior's.
    Source: arXiv 2208.12242, section 3.3 (there half and half, weight 1).

    Raises:
        ConfigError: a share outside (0, 1), or a weight below 0.
    """

    share: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ConfigError(f"prior.share is {self.share}; give a part of the batch, in (0, 1)")
        if not (math.isfinite(self.weight) and self.weight >= 0.0):
            raise ConfigError(f"prior.weight is {self.weight}; give a number of at least 0")

    def count_in(self, batch_size: int) -> int:
        """How many samples of a batch are the prior's: the share, rounded, but at least one.

        Raises:
            ConfigError: the batch would have none of the instance.
        """
        count = max(1, round(self.share * batch_size))
        if count >= batch_size:
            raise ConfigError(
                f"batch_size is {batch_size}, of which prior.share {self.share:g} takes {count}; "
                "a batch needs pictures of both, so make it larger"
            )
        return count
