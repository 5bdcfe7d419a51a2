"""Attention has one result, by whichever kernel."""

import pytest
import torch
from torch.nn import functional as F

from rectiflow.models.layers.attention import ROWS_PER_TILE, attention


@pytest.mark.parametrize("num_queries", [1, ROWS_PER_TILE, 2 * ROWS_PER_TILE + 3])
@pytest.mark.parametrize("has_tiles", [False, True])
def test_in_bfloat16_on_a_cpu_it_is_that_of_the_library(
    num_queries: int, has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with, tile by tile, or by the library's kernel where the processor is fast at it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, num, 64, generator=generator).bfloat16() for num in (num_queries, 50, 50)
    )
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    trained = attention(q, k, v)
    with torch.inference_mode():
        drawn = attention(q, k, v)
    for found in (trained, drawn):
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-2)


def test_no_more_than_a_tile_of_weights_stands_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    sizes: list[int] = []
    softmax = torch.Tensor.softmax

    def noting(scores: torch.Tensor, **options: int) -> torch.Tensor:
        sizes.append(scores.shape[2])
        return softmax(scores, **options)

    monkeypatch.setattr(torch.Tensor, "softmax", noting)
    rows = torch.zeros(1, 1, 3 * ROWS_PER_TILE, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        attention(rows, rows, rows)
    assert sizes == [ROWS_PER_TILE] * 3
