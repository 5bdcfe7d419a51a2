"""adaLN-Zero: layer norm whose scale and shift, and residual gates, come from a vector.

Source: arXiv 2212.09748 (DiT), section 3.2; arXiv 2403.03206, figure 2.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPSILON = 1e-6


class Modulation(nn.Sequential):
    """SiLU, then a linear map from the conditioning vector to shifts, scales and gates."""

    def __init__(self, dim: int, num_chunks: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, num_chunks * dim))
        self.num_chunks = num_chunks

    def chunks(self, vector: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b 1 d"], ...]:
        """[b d] → num_chunks tensors [b 1 d]."""
        return self(vector)[:, None, :].chunk(self.num_chunks, dim=-1)


def modulated_norm(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """LayerNorm(x)·(1 + scale) + shift, without learned affine parameters."""
    normed = F.layer_norm(x, (x.shape[-1],), eps=NORM_EPSILON)
    return normed * (1.0 + scale) + shift
