"""The velocity field that solvers integrate: backbone + formulation + guidance + prompt.

On the walk of a prompt, between `sampling.solvers` and the backbone. It lives in straight
coordinates (`flow.path`): s from 1 (noise) to 0 (data), z on the line, velocity eps − x0, whatever
path the backbone was trained on. For rectified flow these are the path's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow import Coefficients, Formulation
from rectiflow.flow.prediction import per_sample
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling.guidance import Guidance


@runtime_checkable
class Backbone(Protocol):
    """Any network of the form (z_t, t, conditioning) → output shaped as z_t."""

    def __call__(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Field:
    """A function (z, s) → dz/ds for one batch of prompts; `null` has the same length."""

    backbone: Backbone
    formulation: Formulation
    guidance: Guidance
    conditioning: Conditioning
    null: Conditioning

    def __call__(self, z: Float[Tensor, "b ..."], s: Float[Tensor, ""]) -> Float[Tensor, "b ..."]:
        path, prediction = self.formulation.path, self.formulation.prediction
        batches = self.guidance.conditionings(self.conditioning, self.null)
        num = len(batches)
        t, at = self._time_and_coefficients(s, num * z.shape[0])
        z_t = torch.cat([z] * num)
        if not path.is_straight:
            z_t = z_t * per_sample(at.alpha + at.sigma, z_t)
        seen = prediction.network_input(z_t, at)
        output = self.backbone(seen, t, Conditioning.concat(batches)).float()
        velocity = self.formulation.velocity_on_line(output, z_t, at)
        return self.guidance.combine(velocity.chunk(num), s)

    def _time_and_coefficients(
        self, s: Float[Tensor, ""], num: int
    ) -> tuple[Float[Tensor, " b"], Coefficients]:
        """t and the coefficients there, `num` times, in the dtype of s but computed in float64.

        Near its ends a path may turn the last bit of a float32 into a visible change of noise.
        """
        low, high = self.formulation.sampling_range
        t = self.formulation.path.time_at_place(s.double().reshape(1)).clamp(low, high)
        at = self.formulation.path.coefficients(t)
        t, alpha, sigma, d_alpha, d_sigma = (
            value.to(s.dtype).expand(num)
            for value in (t, at.alpha, at.sigma, at.d_alpha, at.d_sigma)
        )
        return t, Coefficients(alpha=alpha, sigma=sigma, d_alpha=d_alpha, d_sigma=d_sigma)
