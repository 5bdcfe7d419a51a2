"""Projections and joint attention over the tokens of several streams.

Source: arXiv 2403.03206, section 4 (joint attention) and 5.3.2 (QK-normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 64
NORM_EPSILON = 1e-6


class StreamAttention(nn.Module):
    """One stream's projections into and out of the joint attention.

    `has_output` is False for a stream that only serves as keys and values of its last block.
    """

    def __init__(self, dim: int, *, use_qk_norm: bool, has_output: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.ln_q = nn.RMSNorm(HEAD_DIM, eps=NORM_EPSILON) if use_qk_norm else nn.Identity()
        self.ln_k = nn.RMSNorm(HEAD_DIM, eps=NORM_EPSILON) if use_qk_norm else nn.Identity()
        if has_output:
            self.proj = nn.Linear(dim, dim)

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [b n heads 64]."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, -1, HEAD_DIM).unbind(2)
        return self.ln_q(q), self.ln_k(k), v


def attention(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"]
) -> Float[Tensor, "b h n d"]:
    """softmax(q·kᵀ/√d)·v without a mask, by the fastest kernel for the device and dtype.

    On a CPU the library's fused kernel has no fast bfloat16 path, least of all backwards; two
    matrix products and a softmax are several times faster (`benchmarks/attention.py`).
    """
    if q.device.type == "cpu" and v.dtype == torch.bfloat16:
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
    return F.scaled_dot_product_attention(q, k, v)


def joint_attention(
    projections: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Float[Tensor, "b n d"], ...]:
    """Attend over all streams' tokens at once, without a mask, and split the result again.

    Takes (q, k, v) of each stream, [b n_i heads 64]; returns one [b n_i heads·64] per stream.
    """
    # Heads go before tokens while the streams are joined, and back once they are split, so that
    # either way costs a single copy.
    q, k, v = (
        torch.cat([part.transpose(1, 2) for part in parts], dim=2)
        for parts in zip(*projections, strict=True)
    )
    attended = attention(q, k, v).split([part[0].shape[1] for part in projections], dim=2)
    return tuple(part.transpose(1, 2).flatten(2) for part in attended)
