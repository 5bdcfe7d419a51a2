"""The position-wise feed-forward network: Linear, tanh-GELU, Linear."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.models.layers.linear import Linear

MLP_RATIO = 4


class FeedForward(nn.Module):
    """[b n d] → [b n d] through a hidden width of MLP_RATIO·d."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, MLP_RATIO * dim)
        self.fc2 = Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
