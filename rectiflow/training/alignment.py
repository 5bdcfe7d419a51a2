"""Representation alignment: hidden image tokens learn to say what a frozen image encoder says.

On the walk of a sample inside `step`: features of the clean picture come with the batch, from the
store's column; what a block makes of the noisy one goes through a small projector, which is trained
beside the backbone and left behind when the model is exported.
Source: arXiv 2410.06940 (REPA), section 3; its early end: arXiv 2505.16792 (HASTE).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.base.errors import ConfigError
from rectiflow.models.layers.linear import Linear
from rectiflow.training.optimizers import Optimizer

#: Linear maps of the projector.
NUM_LAYERS = 3


@dataclass(frozen=True, kw_only=True)
class RepresentationAlignment:
    """loss − weight · mean cosine between projected image tokens and the picture's features.

    `block` is the one after which tokens are taken, counted from 0. `weight` 0 turns it off; the
    paper takes 0.5, after the eighth of 28 blocks. `until` is the share of the training after which
    it ends, in (0, 1]: what helps at first holds back a model that knows more than its teacher.
    `feature_dim` is the width of the store's features, `projector_dim` that of the projector.

    Raises:
        ConfigError: a number out of its range.
    """

    weight: float = 0.0
    block: int = 0
    until: float = 1.0
    feature_dim: int = 96
    projector_dim: int = 256

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0.0):
            raise ConfigError(f"alignment.weight is {self.weight}; give a number of at least 0")
        if not 0.0 < self.until <= 1.0:
            raise ConfigError(
                f"alignment.until is {self.until}; give a share of the training, above 0 and up to "
                "1, or set alignment.weight to 0"
            )
        for name, least in (("block", 0), ("feature_dim", 1), ("projector_dim", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"alignment.{name} is {getattr(self, name)}; it must be at least {least}"
                )

    @property
    def is_on(self) -> bool:
        return self.weight > 0.0

    def is_on_at(self, step: int, max_steps: int) -> bool:
        """Whether the step after `step` finished ones of `max_steps` is aligned."""
        return self.is_on and step < self.until * max_steps


class Projector(nn.Module):
    """Hidden tokens → vectors to compare with features: linear maps with SiLU between them."""

    def __init__(self, config: RepresentationAlignment, hidden_dim: int) -> None:
        super().__init__()
        dims = [hidden_dim, *[config.projector_dim] * (NUM_LAYERS - 1), config.feature_dim]
        # By this name sharding and optimizers know a model's repeated part.
        self.blocks = nn.ModuleList(Linear(*pair) for pair in pairwise(dims))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights anew: matrices Xavier-uniform, biases zero."""
        for layer in self.modules():
            if isinstance(layer, Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n f"]:
        first, *others = self.blocks
        tokens = first(tokens)
        for layer in others:
            tokens = layer(F.silu(tokens))
        return tokens


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """A projector in training, and what moves it; it lives in the training state."""

    projector: Projector
    optimizer: Optimizer


def similarity(
    projector: Callable[[Tensor], Tensor],
    tokens: Float[Tensor, "b n d"],
    features: Float[Tensor, "b f p p"],
    grid: tuple[int, int],
) -> Float[Tensor, ""]:
    """The mean cosine between projected tokens and features; float32.

    `grid` are the tokens' rows and columns, onto which the features of patches are averaged.
    """
    there = F.adaptive_avg_pool2d(features.float(), grid).flatten(2).mT
    return F.cosine_similarity(projector(tokens).float(), there, dim=-1).mean()
