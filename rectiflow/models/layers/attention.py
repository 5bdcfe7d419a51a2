"""Attention over the tokens of several streams, and from one stream to another.

Source: arXiv 2403.03206, section 4 (joint attention) and 5.3.2 (QK-normalisation).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.models.layers.linear import Linear, StackedLinear, ZeroLinear

NORM_EPSILON = 1e-6
#: So many queries are looked at together where all weights of theirs stand in memory.
ROWS_PER_TILE = 256


class _Hooks(threading.local):
    """Who is told of this thread's attentions; nobody but within the two `with`s below."""

    def __init__(self) -> None:
        self.watchers: list[Callable[[Tensor, Tensor], None]] = []
        self.maskers: list[Callable[[Tensor, Tensor], Tensor | None]] = []


_hooks = _Hooks()


def qk_norm(head_dim: int, *, use_qk_norm: bool) -> nn.Module:
    """The norm of each head's queries or keys, [.. head_dim]; without it, nothing."""
    return HeadNorm(head_dim, eps=NORM_EPSILON) if use_qk_norm else nn.Identity()


class HeadNorm(nn.RMSNorm):
    """RMSNorm over the features of a head, in the type of its input."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class StreamAttention(nn.Module):
    """One stream's projections into and out of the joint attention.

    `has_output` is False for a stream that only serves as keys and values of its last block.
    """

    def __init__(self, dim: int, *, head_dim: int, use_qk_norm: bool, has_output: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = StackedLinear(dim, dim, num_parts=3)
        self.ln_q = qk_norm(head_dim, use_qk_norm=use_qk_norm)
        self.ln_k = qk_norm(head_dim, use_qk_norm=use_qk_norm)
        if has_output:
            self.proj = Linear(dim, dim)

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [b n heads head_dim]."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, -1, self.head_dim).unbind(2)
        return self.ln_q(q), self.ln_k(k), v


class CrossAttention(nn.Module):
    """Tokens look at other tokens: queries from `x`, keys and values from `context`.

    Starts at zero, so that a block begins without it.
    """

    def __init__(self, dim: int, *, head_dim: int, use_qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = Linear(dim, dim)
        self.kv = StackedLinear(dim, dim, num_parts=2)
        self.ln_q = qk_norm(head_dim, use_qk_norm=use_qk_norm)
        self.ln_k = qk_norm(head_dim, use_qk_norm=use_qk_norm)
        self.proj = ZeroLinear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b n d"]:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, -1, self.head_dim)
        k, v = self.kv(context).reshape(b, context.shape[1], 2, -1, self.head_dim).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (self.ln_q(q), self.ln_k(k), v))
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


@contextmanager
def watch_attention(look: Callable[[Tensor, Tensor], None]) -> Generator[None]:
    """Call `look(q, k)` at every attention within, after the norm: [b h n d] and [b h m d].

    Of this thread only, as with `mask_attention`.
    """
    _hooks.watchers.append(look)
    try:
        yield
    finally:
        _hooks.watchers.remove(look)


@contextmanager
def mask_attention(choose: Callable[[Tensor, Tensor], Tensor | None]) -> Generator[None]:
    """Ask `choose(q, k)` at every joint attention within for a mask; None leaves it as it is.

    A mask is boolean, [n m], and is True where a query may look at a key.
    """
    _hooks.maskers.append(choose)
    try:
        yield
    finally:
        _hooks.maskers.remove(choose)


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    *,
    mask: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """softmax(q·kᵀ/√d)·v by the fastest kernel for the device and dtype.

    On a CPU without tiles of its own for bfloat16 (AMX) the library's fused kernel has no fast path
    for it, and nowhere backwards; two matrix products and a softmax are several times faster
    (`benchmarks/attention.py`).
    """
    for look in _hooks.watchers:
        look(q, k)
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if q.device.type == "cpu" and v.dtype == torch.bfloat16:
        if torch.is_grad_enabled():
            return _attention_by_products(q, k, v)
        if not torch.cpu._is_amx_tile_supported():  # pyright: ignore[reportPrivateUsage]
            tiles = (_attention_by_products(rows, k, v) for rows in q.split(ROWS_PER_TILE, dim=2))
            return torch.cat(list(tiles), dim=2)
    return F.scaled_dot_product_attention(q, k, v)


def _attention_by_products(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m d"]
) -> Float[Tensor, "b h n d"]:
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)


def repeat_last(tokens: Float[Tensor, "b n *d"], count: int) -> Float[Tensor, "b m *d"]:
    """The tokens with the last one `count` times."""
    if count == 1:
        return tokens
    last = tokens[:, -1:]
    return torch.cat([tokens, last.expand(-1, count - 1, *last.shape[2:])], dim=1)


def joint_attention(
    projections: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Float[Tensor, "b n d"], ...]:
    """Attend over all streams' tokens at once, and split the result again.

    Without a mask, but within `mask_attention`.

    Takes (q, k, v) of each stream, [b n_i heads head_dim], of which a stream may have more keys
    and values than queries; returns one [b n_i heads·head_dim] per stream.
    """
    # Heads go before tokens while the streams are joined, and back once they are split, so that
    # either way costs a single copy.
    q, k, v = (
        torch.cat([part.transpose(1, 2) for part in parts], dim=2)
        for parts in zip(*projections, strict=True)
    )
    masks = (choose(q, k) for choose in _hooks.maskers)
    mask = next((mask for mask in masks if mask is not None), None)
    lengths = [part[0].shape[1] for part in projections]
    attended = attention(q, k, v, mask=mask).split(lengths, dim=2)
    return tuple(part.transpose(1, 2).flatten(2) for part in attended)
