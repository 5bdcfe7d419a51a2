"""The velocity field dz/dt that solvers integrate: backbone + formulation + guidance + prompt.

On the walk of a prompt, between `sampling.solvers` and the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow import Formulation
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling.guidance import Guidance


@runtime_checkable
class Backbone(Protocol):
    """Any network of the form (z_t, t, conditioning) → output shaped as z_t."""

    def __call__(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Field:
    """A function (z, t) → dz/dt for one batch of prompts; `null` has the same length."""

    backbone: Backbone
    formulation: Formulation
    guidance: Guidance
    conditioning: Conditioning
    null: Conditioning

    def __call__(self, z: Float[Tensor, "b ..."], t: Float[Tensor, ""]) -> Float[Tensor, "b ..."]:
        batches = self.guidance.conditionings(self.conditioning, self.null)
        num = len(batches)
        z_all = torch.cat([z] * num)
        t_all = t.expand(z_all.shape[0])
        output = self.backbone(z_all, t_all, Conditioning.concat(batches)).float()
        at = self.formulation.path.coefficients(t_all)
        velocity = self.formulation.prediction.to_velocity(output, z_all, at)
        return self.guidance.combine(velocity.chunk(num), t)
