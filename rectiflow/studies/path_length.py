"""How long the way from noise to picture is: Σ‖v·dt‖ over the solver's steps.

A straight flow's way is as long as its ends are apart, however many steps are taken; what is
longer, bends. Source: arXiv 2403.03206, section 5.3.3 and table 6.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


class PathLength:
    """Adds up ‖z_{i+1} − z_i‖ of every sample over integrations; an `OnStep`.

    `starts` are the samples' noise; integrations take them in order, a batch each, and begin at
    step 0.
    """

    def __init__(self, starts: Float[Tensor, "n ..."]) -> None:
        self._starts = starts
        self._num_begun = 0
        self._previous = starts[:0]
        self._finished: list[Tensor] = []

    def __call__(self, index: int, t: Tensor, z: Float[Tensor, "b ..."]) -> None:
        """Sees z after step `index`, as `integrate` shows it.

        Raises:
            ValueError: more samples came than there are starts.
        """
        if index == 0:
            rows = slice(self._num_begun, self._num_begun + len(z))
            self._previous = self._starts[rows]
            if len(self._previous) != len(z):
                raise ValueError(
                    f"{self._num_begun + len(z)} samples came, but only {len(self._starts)} "
                    "starts were given; give the noise of every sample, in order"
                )
            self._num_begun += len(z)
            self._finished.append(torch.zeros(len(z), dtype=torch.float64))
        step = (z - self._previous).flatten(1).double()
        self._finished[-1] += step.norm(dim=1).cpu()
        self._previous = z

    def lengths(self) -> Float[Tensor, " n"]:
        """The length of each sample's way so far, in order; float64."""
        return torch.cat(self._finished) if self._finished else torch.zeros(0).double()


def independent_length(dim: int) -> float:
    """√(2·dim): how far apart independent noise and data of unit variance lie in `dim` numbers."""
    return math.sqrt(2.0 * dim)
