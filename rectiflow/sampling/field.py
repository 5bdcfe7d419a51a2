"""The velocity field that solvers integrate: backbone + formulation + guidance + prompt.

On the walk of a prompt, between `sampling.solvers` and the backbone. It lives in straight
coordinates (`flow.path`): s from 1 (noise) to 0 (data), z on the line, velocity eps − x0, whatever
path the backbone was trained on. For rectified flow these are the path's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow import Coefficients, Formulation
from rectiflow.flow.prediction import per_sample
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Network
from rectiflow.sampling.guidance import Branch, Guidance, check_guidance_scale


@runtime_checkable
class Backbone(Protocol):
    """Any network of the form (z_t, t, conditioning) → output shaped as z_t."""

    def __call__(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Field:
    """A function (z, s) → dz/ds for one batch of prompts; `null` has the same length.

    `weaker` is the weaker model's network for a guidance that contrasts with one; it shares the
    formulation.

    Raises:
        ConfigError: the guidance needs what is not there, or does not go with the scale.
    """

    backbone: Backbone
    formulation: Formulation
    guidance: Guidance
    guidance_scale: float = 1.0
    conditioning: Conditioning
    null: Conditioning
    weaker: Backbone | None = None

    def __post_init__(self) -> None:
        check_guidance_scale(self.guidance_scale)

    def __call__(self, z: Float[Tensor, "b ..."], s: Float[Tensor, ""]) -> Float[Tensor, "b ..."]:
        branches = self.guidance.branches(self.guidance_scale, s)
        shared: list[Branch] = [branch for branch in branches if branch != "weak"]
        prompts = [self.null if branch == "null" else self.conditioning for branch in shared]
        velocities: dict[Branch, Tensor] = dict(
            zip(shared, self._velocities(self.backbone, prompts, z, s), strict=True)
        )
        if len(branches) == 1:
            return velocities["conditional"]
        if "weak" in branches:
            network = self.guidance.weak_network(self.backbone, self.weaker)
            (velocities["weak"],) = self._velocities(network, [self.conditioning], z, s)
        return self.guidance.combine(velocities, self.guidance_scale, z, s)

    def _velocities(
        self,
        network: Network,
        prompts: Sequence[Conditioning],
        z: Float[Tensor, "b ..."],
        s: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, "b ..."], ...]:
        """dz/ds for each batch of prompts, all through the network at once."""
        path, prediction = self.formulation.path, self.formulation.prediction
        num = len(prompts)
        t, at = time_and_coefficients(self.formulation, s, num * z.shape[0])
        z_t = torch.cat([z] * num)
        if not path.is_straight:
            z_t = z_t * per_sample(at.alpha + at.sigma, z_t)
        seen = prediction.network_input(z_t, at)
        output = network(seen, t, Conditioning.concat(prompts)).float()
        return self.formulation.velocity_on_line(output, z_t, at).chunk(num)


def time_and_coefficients(
    formulation: Formulation, s: Float[Tensor, ""], num: int = 1
) -> tuple[Float[Tensor, " b"], Coefficients]:
    """The network's t at s and the coefficients there, `num` times.

    In the dtype of s but computed in float64: near its ends a path may turn the last bit of a
    float32 into a visible change of noise.
    """
    low, high = formulation.sampling_range
    t = formulation.path.time_at_place(s.double().reshape(1)).clamp(low, high)
    at = formulation.path.coefficients(t)
    t, alpha, sigma, d_alpha, d_sigma = (
        value.to(s.dtype).expand(num) for value in (t, at.alpha, at.sigma, at.d_alpha, at.d_sigma)
    )
    return t, Coefficients(alpha=alpha, sigma=sigma, d_alpha=d_alpha, d_sigma=d_sigma)
