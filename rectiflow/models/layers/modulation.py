"""adaLN-Zero: layer norm whose scale and shift, and residual gates, come from a vector.

Source: arXiv 2212.09748 (DiT), section 3.2; arXiv 2403.03206, figure 2.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.models.layers.linear import ZeroLinear

NORM_EPSILON = 1e-6
#: What modulates a batch: a vector for each sample, or the vector's place in a table
#: (`models.tabulation`). Only a modulation looks into it.
Modulator = Float[Tensor, "b v"] | Int[Tensor, " b"]


class Modulation(nn.Sequential):
    """SiLU, then a linear map from the conditioning vector to shifts, scales and gates.

    They modulate features of width `dim`; the vector has width `vector_dim`, without it `dim` too.
    """

    def __init__(self, dim: int, num_chunks: int, *, vector_dim: int | None = None) -> None:
        super().__init__(nn.SiLU(), ZeroLinear(vector_dim or dim, dim, num_parts=num_chunks))
        self.num_chunks = num_chunks

    def chunks(self, vector: Float[Tensor, "b v"]) -> tuple[Float[Tensor, "b 1 d"], ...]:
        """[b v] → num_chunks tensors [b 1 d]."""
        return self(vector)[:, None, :].chunk(self.num_chunks, dim=-1)


def modulated_norm(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]
) -> Float[Tensor, "b n d"]:
    """LayerNorm(x)·(1 + scale) + shift, without learned affine parameters."""
    normed = F.layer_norm(x, (x.shape[-1],), eps=NORM_EPSILON)
    return normed * (1.0 + scale) + shift


class FinalLayer(nn.Module):
    """Modulated norm, then a linear map to the features of one patch; starts at zero."""

    def __init__(self, dim: int, out_features: int, *, vector_dim: int | None = None) -> None:
        super().__init__()
        self.adaLN_modulation = Modulation(dim, num_chunks=2, vector_dim=vector_dim)
        self.linear = ZeroLinear(dim, out_features)

    def forward(self, x: Float[Tensor, "b n d"], vector: Modulator) -> Float[Tensor, "b n o"]:
        shift, scale = self.adaLN_modulation.chunks(vector)
        return self.linear(modulated_norm(x, shift, scale))
