"""The training objective: weighted squared error of the network's output at a noisy sample.

On the walk of a sample, between `training.step` and the backbone. Notation: `docs/notation.md`.
Source: arXiv 2403.03206, equations 9–11 (conditional flow matching and its reweighting);
arXiv 2506.05350 (contrastive flow matching, its ΔFM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rectiflow.flow.formulation import Formulation
from rectiflow.flow.path import Coefficients
from rectiflow.flow.prediction import per_sample


@dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """The scalar to minimise and each sample's share of it."""

    loss: Float[Tensor, ""]
    per_sample: Float[Tensor, " b"]

    def weighted(self, weights: Float[Tensor, " b"]) -> FlowLoss:
        """The mean over samples of weights·per_sample; weights of 1 change nothing."""
        per_sample = weights * self.per_sample
        return FlowLoss(loss=per_sample.mean(), per_sample=per_sample)


def noisy_latents(
    x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], at: Coefficients
) -> Float[Tensor, "b ..."]:
    """z_t = alpha·x0 + sigma·eps."""
    return per_sample(at.alpha, x0) * x0 + per_sample(at.sigma, eps) * eps


def flow_matching_loss(
    backbone: Callable[..., Tensor],
    formulation: Formulation,
    x0: Float[Tensor, "b ..."],
    eps: Float[Tensor, "b ..."],
    t: Float[Tensor, " b"],
    conditioning: object,
    *,
    contrast: float = 0.0,
) -> FlowLoss:
    """mean over latents of w_t·(backbone(z_t, t, conditioning) − target)², float32.

    `t` is in (0, 1) and float32; `conditioning` is passed through to the backbone untouched.
    With `contrast` in (0, 1), contrast·w_t·(output − other target)² is taken off, where the other
    target is made, at the same t, of `swapped` x0 and eps: the output is drawn to its own target
    and driven from another's. Where the squared error alone is least for u, this is least for
    (u − contrast·E[other target])/(1 − contrast). It can be negative.

    Raises:
        ValueError: with `contrast`, an odd number of samples.
    """
    at = formulation.path.coefficients(t)
    z_t = noisy_latents(x0, eps, at)
    prediction = formulation.prediction
    target = prediction.target(x0, eps, at)
    output = backbone(prediction.network_input(z_t, at), t, conditioning).float()
    error = _squared_error(output, target)
    if contrast:
        other = prediction.target(swapped(x0), swapped(eps), at)
        error = error - contrast * _squared_error(output, other)
    weighted = formulation.weighting.weight(t, at, prediction) * error
    return FlowLoss(loss=weighted.mean(), per_sample=weighted)


def swapped(values: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Neighbours change places: the first sample with the second, the third with the fourth, …

    So that each sample meets one other, whichever pairs of a batch are at hand.

    Raises:
        ValueError: the last sample has no neighbour.
    """
    if len(values) % 2:
        raise ValueError(f"{len(values)} samples do not make pairs; give an even number")
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _squared_error(
    output: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    return (output - target).square().flatten(1).mean(dim=1)
