"""Held-out loss at fixed times and fixed noise, so that runs and steps compare without scatter.

Source: arXiv 2403.03206, section 5.3 and figure 8 (validation loss tracks quality); the levels
t = k/8, k = 1…7, as MLPerf's text-to-image training measures it, moved by the recipe's shift.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from rectiflow.data.records import Batch
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.step import Draw, condition, forward, posterior_and_noise

LEVELS = tuple(k / 8 for k in range(1, 8))


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Mean held-out loss, and its parts by level; every prompt kept whole.

    `levels` are the times k/8 after the recipe's shift.
    """

    loss: float
    levels: tuple[float, ...]
    per_level: tuple[float, ...]


@torch.no_grad()
def validate(backbone: nn.Module, batches: Iterable[Batch], recipe: TrainRecipe) -> ValidationLoss:
    """The loss of `backbone` over held-out batches.

    Noise is a function of (a batch's keys, level); give the same keys each time. If the backbone is
    cut among processes, each calls it with the same batches.
    """
    device = next(backbone.parameters()).device
    levels = recipe.shift.along(recipe.formulation.path, torch.tensor(LEVELS)).to(device)
    sums = torch.zeros(len(levels), dtype=torch.float64)
    count = 0
    for batch in (held_out.to(device) for held_out in batches):
        conditioning = condition(batch, None)
        count += len(batch.keys)
        for level, t in enumerate(levels):
            x0, eps = posterior_and_noise(batch, batch.keys, stream=level)
            example = Draw(x0=x0, eps=eps, t=t.expand(len(x0)), conditioning=conditioning)
            sums[level] += forward(backbone, example, recipe).per_sample.double().sum().cpu()
    per_level = (sums / count).tolist()
    return ValidationLoss(
        loss=sum(per_level) / len(per_level),
        levels=tuple(round(level, 6) for level in levels.tolist()),
        per_level=tuple(per_level),
    )
