"""Moving averages of the weights, each held as a second, ready-to-use copy of the model.

On the walk of a sample: step -> here -> validation, sample pictures and the exported model.
SD3 samples from EMA weights (arXiv 2403.03206, appendix B.3).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from rectiflow.base.config import LATER
from rectiflow.base.errors import ConfigError
from rectiflow.distributed.sharding import own_parts
from rectiflow.training.power_profile import PowerProfile


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """`decay` per optimizer step; the average is updated once every `every` steps.

    Beside this one, which is validated, drawn with and exported, the run may keep averages with the
    `sigma_rels` of power functions, updated at every step. They are written into the run's folder
    every `snapshot_every` steps, and after it make an average of any length
    (`training.power_profile`, `training.post_hoc`).
    """

    decay: float = 0.999
    every: int = 1
    sigma_rels: tuple[float, ...] = field(default=(), metadata=LATER)
    snapshot_every: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ConfigError(f"ema.decay is {self.decay}; give a number from 0 to below 1")
        if self.every < 1:
            raise ConfigError(f"ema.every is {self.every}; give a number of steps >= 1")
        for sigma_rel in self.sigma_rels:
            PowerProfile(sigma_rel)  # says what is wrong with it
        if len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ConfigError(f"ema.sigma_rels are {self.sigma_rels}; give each of them once")
        if self.snapshot_every < 0 or bool(self.sigma_rels) != bool(self.snapshot_every):
            raise ConfigError(
                f"ema.sigma_rels are {self.sigma_rels} and ema.snapshot_every is "
                f"{self.snapshot_every}; give both, such as 0.05 0.1 and a fiftieth of max_steps, "
                "or neither"
            )

    @property
    def num_averages(self) -> int:
        """Copies of the weights that are kept."""
        return 1 + len(self.sigma_rels)

    def decay_at(self, num_updates: int) -> float:
        """The weight of the old average in update number `num_updates` (counted from 0).

        min(decay^every, n / (n + 10)): the very first update copies the weights, so that nothing
        of the random start stays in the average, and early updates look back over about a tenth
        of the run so far.
        """
        return min(self.decay**self.every, num_updates / (num_updates + 10))


class Ema:
    """The averaged copy `model` (float32, no gradients, evaluation mode) of a training model.

    `decay_at` gives the weight of the old average in each update, counted from 0; there is an
    update every `every` steps.
    If the training model is cut among processes, the copy is to be cut alike: each process averages
    its own parts.
    """

    def __init__(
        self, decay_at: Callable[[int], float], model: nn.Module, *, every: int = 1
    ) -> None:
        self._decay_at, self._every = decay_at, every
        # Buffers are constants (the position grid), so both models share them, and so are weights
        # that are not trained (the model that a LoRA changes).
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        shared = {id(constant): constant for constant in (*model.buffers(), *frozen)}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self._source = model

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` optimizer steps (>= 1); idle between updates."""
        if step % self._every:
            return
        decay = self._decay_at(step // self._every - 1)
        pairs = zip(self.model.parameters(), self._source.parameters(), strict=True)
        moving = [(average, weight) for average, weight in pairs if weight.requires_grad]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage]
            own_parts(average for average, _ in moving),
            own_parts(weight for _, weight in moving),
            1.0 - decay,
        )
