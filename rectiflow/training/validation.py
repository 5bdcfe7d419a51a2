"""Held-out loss at fixed times and fixed noise, so that runs and steps compare without scatter.

Source: arXiv 2403.03206, section 5.3 and figure 8 (validation loss tracks quality); the levels
t = k/8, k = 1…7, as MLPerf's text-to-image training measures it, moved by the recipe's shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from rectiflow.data.records import Batch
from rectiflow.distributed.world import ALONE, World
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.step import Draw, condition, forward, posterior_and_noise

LEVELS = tuple(k / 8 for k in range(1, 8))
#: Held-out samples that go through the network at once, at most. Few, so that many processes can
#: share them, and the same for any number of processes, so that the losses are the same to the bit.
LARGEST_PORTION = 16


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Mean held-out loss, and its parts by level; every prompt kept whole.

    `levels` are the times k/8 after the recipe's shift. `error` and `per_level_error` are standard
    errors over the held-out samples: about how far the loss over endlessly many samples may lie
    from this one; nan for a single sample. Two validations share samples and noise, so that their
    difference is known better than either.
    """

    loss: float
    levels: tuple[float, ...]
    per_level: tuple[float, ...]
    error: float
    per_level_error: tuple[float, ...]


def validate(
    backbone: nn.Module, batches: Iterable[Batch], recipe: TrainRecipe, world: World = ALONE
) -> ValidationLoss:
    """The loss of `backbone` over held-out batches.

    Noise is a function of (a batch's keys, level); give the same keys each time. Every process of
    `world` calls it with the same batches, and has the same answer.
    """
    losses = held_out_losses(backbone, batches, recipe, world)
    return summarize(losses, _levels_of(recipe).tolist())


@torch.no_grad()
def held_out_losses(
    backbone: nn.Module, batches: Iterable[Batch], recipe: TrainRecipe, world: World = ALONE
) -> Float64[Tensor, "n k"]:
    """The losses of the batches' samples, in order, at the k levels; on the CPU.

    The processes of `world` take portions of the batches in turn. Each makes as many forward passes
    as any other, since a backbone cut among them meets in every one: who has no portion left in the
    last round repeats one in vain.
    """
    size, turns = portion_size(recipe), world.num_processes
    portions = [batch[i : i + size] for batch in batches for i in range(0, len(batch), size)]
    rows: list[Tensor] = []
    for first in range(0, len(portions), turns):
        taken = portions[first : first + turns]
        mine = _losses(backbone, taken[min(world.rank, len(taken) - 1)], recipe)
        padded = mine.new_zeros(max(map(len, taken)), mine.shape[1])
        padded[: len(mine)] = mine
        # A row a process; those that repeated a portion are left out.
        together = world.gather(*padded.flatten().tolist())
        rows += [
            row.view_as(padded)[: len(batch)] for row, batch in zip(together, taken, strict=False)
        ]
    return torch.cat(rows)


def portion_size(recipe: TrainRecipe) -> int:
    """How many held-out samples go through the network at once: no more than one process's step."""
    return min(LARGEST_PORTION, recipe.micro_batch or recipe.batch_size)


def _losses(backbone: nn.Module, batch: Batch, recipe: TrainRecipe) -> Float64[Tensor, "b k"]:
    device = next(backbone.parameters()).device
    batch = batch.to(device)
    conditioning = condition(batch, None)
    losses: list[Tensor] = []
    for level, t in enumerate(_levels_of(recipe).to(device)):
        x0, eps = posterior_and_noise(batch, batch.keys, stream=level)
        example = Draw(x0=x0, eps=eps, t=t.expand(len(x0)), conditioning=conditioning)
        losses.append(forward(backbone, example, recipe).per_sample.double().cpu())
    return torch.stack(losses, dim=1)


def _levels_of(recipe: TrainRecipe) -> Float[Tensor, " k"]:
    return recipe.shift.along(recipe.formulation.path, torch.tensor(LEVELS))


def summarize(losses: Float[Tensor, "n k"], levels: Sequence[float]) -> ValidationLoss:
    """Means and standard errors of n samples' losses at k levels.

    A sample's levels share its picture and fail together, so the mean over levels has the error of
    n values, not of n·k.
    """
    per_level, means = losses.mean(dim=0).tolist(), losses.mean(dim=1)
    return ValidationLoss(
        loss=sum(per_level) / len(per_level),
        levels=tuple(round(level, 6) for level in levels),
        per_level=tuple(per_level),
        error=_standard_errors(means[:, None])[0],
        per_level_error=tuple(_standard_errors(losses)),
    )


def _standard_errors(values: Float[Tensor, "n k"]) -> list[float]:
    """std / √n of each column, with n - 1 degrees of freedom."""
    n = len(values)
    if n < 2:
        return [math.nan] * values.shape[1]
    return (values.std(dim=0) / n**0.5).tolist()
