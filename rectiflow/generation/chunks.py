"""Batch sizes that cannot change a picture: rows computed together, each as if alone.

Matrix kernels choose how to add by the shape of the whole batch: on CPUs the same row differs in
its last bits between batches of 1 and 2, in float32 also between 4 and 16, and with two threads an
odd batch treats its first and last rows differently. So one size is the reference, and another is
used only after a probe has shown that it gives the reference's bits at each of its places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

#: size → the probe's result when `size` equal rows are drawn together, one row each.
Probe = Callable[[int], Float[Tensor, "b ..."]]


def trusted_sizes(probe: Probe, candidates: Sequence[int], *, reference: int) -> tuple[int, ...]:
    """The sizes that give the same bits as `reference`, in falling order; at least one.

    Where a row's place matters even among `reference` equal rows, only single rows are safe.
    """
    if reference == 1 and not set(candidates) - {1}:
        return (1,)
    rows = probe(reference)
    if not all(torch.equal(row, rows[0]) for row in rows[1:]):
        return (1,)
    trusted = [
        size
        for size in candidates
        if size == reference or all(torch.equal(row, rows[0]) for row in probe(size))
    ]
    return tuple(sorted({*trusted, reference}, reverse=True))


def plan_chunks(count: int, sizes: Sequence[int]) -> list[int]:
    """Sizes of the chunks for `count` rows: the largest that fit, the last filled up if need be."""
    plan: list[int] = []
    while count > 0:
        fitting = [size for size in sizes if size <= count]
        plan.append(max(fitting) if fitting else min(sizes))
        count -= plan[-1]
    return plan
