"""Only batch sizes that a probe has shown to be harmless are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rectiflow.generation.chunks import plan_chunks, trusted_sizes


def test_sizes_with_the_reference_bits_are_trusted() -> None:
    def probe(size: int) -> Tensor:
        return torch.full((size, 3), 0.5 if size != 1 else 0.5 + 1e-7)

    assert trusted_sizes(probe, (1, 16), reference=4) == (16, 4)


def test_a_size_whose_last_row_differs_is_not_trusted() -> None:
    def probe(size: int) -> Tensor:
        rows = torch.zeros(size, 3)
        if size == 16:
            rows[-1, 2] = 1e-7
        return rows

    assert trusted_sizes(probe, (1, 16), reference=4) == (4, 1)


def test_one_by_one_where_the_place_matters() -> None:
    assert trusted_sizes(
        lambda size: torch.arange(size)[:, None].float(), (1, 16), reference=4
    ) == (1,)


def test_what_is_drawn_alone_anyway_is_not_probed() -> None:
    def probe(size: int) -> Tensor:
        raise AssertionError

    assert trusted_sizes(probe, (), reference=1) == (1,)


@pytest.mark.parametrize(
    ("count", "sizes", "plan"),
    [
        (1, (16, 4, 1), [1]),
        (1, (16, 4), [4]),
        (23, (16, 4, 1), [16, 4, 1, 1, 1]),
        (23, (16, 4), [16, 4, 4]),
        (32, (16, 4), [16, 16]),
        (3, (1,), [1, 1, 1]),
        (0, (4,), []),
    ],
)
def test_plan_covers_all_rows(count: int, sizes: tuple[int, ...], plan: list[int]) -> None:
    assert plan_chunks(count, sizes) == plan
