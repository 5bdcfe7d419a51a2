"""A solver that keeps a region of the latents: what is not to change is put back after each step.

On the walk of a prompt between `integrate` and the solver of the settings, where a picture is
edited by a network that knows nothing of masks. Source: arXiv 2201.09865, section 4.1 (without its
resampling); diffusers' SD3 inpainting.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rectiflow.flow import RectifiedFlowPath, noisy_latents
from rectiflow.sampling.solvers import FreshNoise, Memory, Solver, VelocityField


class InpaintingSolver(Solver):
    """Another solver's step, then z' = mask·z' + (1 − mask)·(t'·eps + (1 − t')·x0).

    At t' = 0 the kept region is x0 itself. What the other remembers stays as it made it.
    """

    def __init__(
        self,
        solver: Solver,
        *,
        x0: Float[Tensor, "#b c h w"],
        eps: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "#b 1 h w"],
    ) -> None:
        self._solver, self._x0, self._eps, self._mask = solver, x0, eps, mask

    # Those of the solver inside, so not known to the class.
    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._solver.order

    @property
    def couples_samples(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._solver.couples_samples

    def first_memory(self, fresh: FreshNoise | None) -> Memory:
        return self._solver.first_memory(fresh)

    def step(
        self,
        field: VelocityField,
        z: Float[Tensor, "b ..."],
        t: Float[Tensor, ""],
        t_next: Float[Tensor, ""],
        memory: Memory,
    ) -> tuple[Float[Tensor, "b ..."], Memory]:
        z, memory = self._solver.step(field, z, t, t_next, memory)
        return self.keep(z, t_next), memory

    def keep(self, z: Float[Tensor, "b c h w"], t: Float[Tensor, ""]) -> Float[Tensor, "b c h w"]:
        """z with the kept region as it is at t."""
        # Not `lerp`: the same bits at every place of a batch, and exact where the mask is 0 or 1.
        return self._mask * z + (1.0 - self._mask) * noisy_on_line(self._x0, self._eps, t)


def noisy_on_line(
    x0: Float[Tensor, "#b ..."], eps: Float[Tensor, "b ..."], t: Float[Tensor, ""]
) -> Float[Tensor, "b ..."]:
    """t·eps + (1 − t)·x0: noisy data in straight coordinates, whatever the path."""
    return noisy_latents(
        x0.expand_as(eps), eps, RectifiedFlowPath().coefficients(t.expand(len(eps)))
    )
