"""Exponential moving average of the weights, held as a second, ready-to-use copy of the model.

On the walk of a sample: step -> here -> validation, sample pictures and the exported model.
SD3 samples from EMA weights (arXiv 2403.03206, appendix D).
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from rectiflow.base.errors import ConfigError
from rectiflow.distributed.sharding import own_parts


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """`decay` per optimizer step; the average is updated once every `every` steps."""

    decay: float = 0.999
    every: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ConfigError(f"ema.decay is {self.decay}; give a number from 0 to below 1")
        if self.every < 1:
            raise ConfigError(f"ema.every is {self.every}; give a number of steps >= 1")

    def decay_at(self, num_updates: int) -> float:
        """The weight of the old average in update number `num_updates` (counted from 0).

        min(decay^every, n / (n + 10)): the very first update copies the weights, so that nothing
        of the random start stays in the average, and early updates look back over about a tenth
        of the run so far.
        """
        return min(self.decay**self.every, num_updates / (num_updates + 10))


class Ema:
    """The averaged copy `model` (float32, no gradients, evaluation mode) of a training model.

    If the training model is cut among processes, the copy is to be cut alike: each process averages
    its own parts.
    """

    def __init__(self, config: EmaConfig, model: nn.Module) -> None:
        self.config = config
        # Buffers are constants (the position grid), so both models share them.
        shared = {id(buffer): buffer for buffer in model.buffers()}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self._source = model

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` optimizer steps (>= 1); idle between updates."""
        if step % self.config.every:
            return
        decay = self.config.decay_at(step // self.config.every - 1)
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage]
            own_parts(self.model.parameters()), own_parts(self._source.parameters()), 1.0 - decay
        )
