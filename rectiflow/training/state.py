"""All that a run needs to go on as if it had never stopped.

On the walk of a sample: the loop owns it, `step` advances it, `checkpoint` stores it. Random
numbers are functions of (seed, epoch, sample), and the learning rate and the loader's order are
functions of the step, so `step` and the recipe stand for generators, schedule and loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rectiflow.base.errors import CheckpointError
from rectiflow.base.seeds import derive_seed
from rectiflow.models.backbones import build_backbone
from rectiflow.models.frame import Backbone
from rectiflow.models.precision import compute_dtype
from rectiflow.training.ema import Ema
from rectiflow.training.optimizers import Optimizer
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.spikes import SpikeMemory
from rectiflow.training.start_from import FirstWeights


@dataclass(kw_only=True)
class TrainState:
    """Weights, their average, the optimizer and the counters; changed in place by each step.

    `step` counts finished optimizer steps; `loss_window` holds the losses since the last log
    line; `elapsed_s` is the training time of all sessions so far; `origin` says which model the
    first weights came from, None where they were random. `spikes` is what the recipe's guard
    against loss spikes remembers.
    """

    backbone: Backbone
    ema: Ema
    optimizer: Optimizer
    step: int = 0
    elapsed_s: float = 0.0
    loss_window: list[float] = field(default_factory=list)
    origin: dict[str, str] | None = None
    spikes: SpikeMemory = field(default_factory=SpikeMemory)

    @classmethod
    def start(cls, recipe: TrainRecipe, first: FirstWeights | None = None) -> TrainState:
        """The state before the first step: weights drawn from the recipe's seed, or `first`.

        Raises:
            CheckpointError: `first` does not fit the recipe's backbone.
        """
        backbone = build_backbone(recipe.backbone)
        seed = derive_seed(recipe.seed, "backbone")
        backbone.initialize(torch.Generator().manual_seed(seed))
        if first is not None:
            first.copy_into(backbone, add_qk_norm=recipe.add_qk_norm)
        return cls(
            backbone=backbone,
            ema=Ema(recipe.ema, backbone),
            optimizer=recipe.optimizer.build(backbone, compute_dtype(recipe.precision)),
            origin=first.origin_of(recipe) if first is not None else None,
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The live tensors by file stem: weights, ema, optimizer."""
        return {
            "weights": self.backbone.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state(),
        }

    def become(self, other: TrainState) -> None:
        """Take over everything but the time that has passed, which nothing brings back."""
        self.load_tensors(other.tensors())
        self.step, self.loss_window = other.step, other.loss_window
        self.origin, self.spikes = other.origin, other.spikes

    def load_tensors(self, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy saved tensors in.

        Raises:
            CheckpointError: a name or shape is not this recipe's; the text gives the first one.
        """
        for stem, own in self.tensors().items():
            copy_exactly(saved[stem], own, what=f"{stem}.safetensors")


@torch.no_grad()
def copy_exactly(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], *, what: str) -> None:
    """Copy tensors by name where names, shapes and types all agree.

    Raises:
        CheckpointError: they do not; `what` names the source in the text.
    """
    for name in own.keys() ^ saved.keys():
        side = "lacks" if name in own else "has an unknown"
        raise CheckpointError(
            f"{what} {side} tensor {name!r}: it was written for another recipe; continue with "
            "the recipe that it was trained with, or start a new run folder"
        )
    for name, value in own.items():
        found = saved[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise CheckpointError(
                f"{what}: tensor {name!r} is {found.dtype} {list(found.shape)}, this recipe needs "
                f"{value.dtype} {list(value.shape)}; continue with the recipe that it was trained "
                "with, or start a new run folder"
            )
    for name, value in own.items():
        value.copy_(saved[name])
