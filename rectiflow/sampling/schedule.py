"""Time grids: the times at which a solver stops, from noise (1) to data (0).

Times are those of straight coordinates (`flow.path`), for rectified flow its own t.

Source: arXiv 2403.03206, section 5.3.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.flow import Formulation, ResolutionShift
from rectiflow.flow.shift import NO_SHIFT


def linear_times(num_steps: int, *, shift: ResolutionShift = NO_SHIFT) -> Float[Tensor, " n"]:
    """num_steps + 1 times, 1 = s_0 > … > s_num_steps = 0, evenly spaced before the shift."""
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps} must be at least 1")
    return shift.on_line(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)).float()


def times_for(
    formulation: Formulation, num_steps: int, *, shift: ResolutionShift = NO_SHIFT
) -> Float[Tensor, " n"]:
    """`linear_times`, begun where the formulation's sampling range does."""
    high = torch.tensor([formulation.sampling_range[1]], dtype=torch.float64)
    first = formulation.path.place_on_line(high).item()
    return linear_times(num_steps, shift=shift).clamp(max=first)
