"""Embeddings of time, position, patches and vectors.

Source: arXiv 2403.03206, sections 4 and 5.3.2; frequencies and order as in the released models.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.layers.linear import Linear, multiply

TIME_EMBEDDING_DIM = 256
TIME_SCALE = 1000.0
MAX_PERIOD = 10_000.0


def sinusoidal_time_embedding(t: Float[Tensor, " b"]) -> Float[Tensor, "b 256"]:
    """cos then sin of 1000·t at 128 frequencies from 1 down to nearly 1/10000, float32."""
    half = TIME_EMBEDDING_DIM // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)
    angles = (TIME_SCALE * t.float())[:, None] * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _axis_embedding(positions: Tensor, dim: int) -> Tensor:
    omega = MAX_PERIOD ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions[:, None] * omega[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def position_grid(side: int, dim: int, *, base_side: int) -> Float[Tensor, "side side dim"]:
    """Closed-form 2-D sin/cos positions on a square grid of tokens.

    The middle `base_side` tokens of each axis span [0, 16) in steps of 16/base_side, so that a
    model trained at base_side can be cropped from, or extended to, a larger grid. The first half
    of `dim` encodes the column, the second the row.
    Source: arXiv 2403.03206, section 5.3.2 (positional encodings for varying aspect ratios).
    """
    index = torch.arange(side, dtype=torch.float64)
    axis = (index - (side - base_side) / 2) * (16.0 / base_side)
    embedding = _axis_embedding(axis, dim // 2)
    columns = embedding[None, :, :].expand(side, side, -1)
    rows = embedding[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).float()


class VectorEmbedder(nn.Module):
    """Linear–SiLU–Linear: [b in] → [b hidden]."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        first, second = Linear(in_dim, hidden_dim), Linear(hidden_dim, hidden_dim)
        self.linears = (first, second)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)

    def forward(self, vector: Float[Tensor, "b i"]) -> Float[Tensor, "b d"]:
        return self.mlp(vector)


class PatchEmbedder(nn.Module):
    """Latents [b c h w] → tokens [b (h/p)(w/p) d], row by row.

    The weight has the shape of the convolution in released files; a stride as large as the kernel
    makes it a matrix product on cut-out patches, which is faster.
    """

    def __init__(self, in_channels: int, patch_size: int, hidden_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_dim, patch_size, stride=patch_size)

    def forward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        p = self.proj.kernel_size[0]
        b, c, h, w = latents.shape
        patches = latents.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(b, (h // p) * (w // p), c * p * p)
        return multiply(patches, self.proj.weight.flatten(1), self.proj.bias)


def unpatchify(
    tokens: Float[Tensor, "b n o"], *, rows: int, columns: int, patch_size: int
) -> Float[Tensor, "b c h w"]:
    """Tokens whose features are ordered (row in patch, column in patch, channel) → [b c h w]."""
    b, p = tokens.shape[0], patch_size
    grid = tokens.reshape(b, rows, columns, p, p, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * p, columns * p)
