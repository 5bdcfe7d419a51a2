"""Philox against published vectors, NumPy and statistics; rows depend on their key alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rectiflow.base.philox import even_uniform, keys_for, normal, philox_block, uniform

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, result
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_block_equals_published_vectors(counter: str, key: str, result: str) -> None:
    assert philox_block(words(counter), words(key)) == words(result)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_block_equals_plain_integers(key: int, stream: int, block: int) -> None:
    """The same ten rounds in unbounded Python integers."""
    c = [block, 0, stream & 0xFFFFFFFF, stream >> 32]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    expected = torch.tensor([((word >> 9) + 0.5) / 2**23 for word in c])
    row = uniform(torch.tensor([key]), 4 * block + 4, stream=stream)[0, 4 * block :]
    assert torch.equal(row, expected)


def test_normal_equals_box_muller_by_libm() -> None:
    """log, sin and cos by series agree with the mathematical ones to float32 precision."""
    values = normal(torch.tensor([7]), (4,), stream=3)[0].tolist()
    block = philox_block(
        (torch.tensor([0]), torch.tensor([0]), torch.tensor([3]), torch.tensor([0])),
        (torch.tensor([7]), torch.tensor([0])),
    )
    w = [int(word) for word in block]
    expected = []
    for u_word, turn in ((w[0], w[1]), (w[2], w[3])):
        radius = math.sqrt(-2 * math.log((u_word + 0.5) / 2**32))
        angle = (((turn >> 2) + 0.5) / 2**30 - 0.5) * math.pi / 2
        cosine = math.cos(angle) * (-1 if turn & 2 else 1)
        sine = math.sin(angle)
        expected += (
            [radius * sine, radius * cosine] if turn & 1 else [radius * cosine, radius * sine]
        )
    assert values == pytest.approx(expected, rel=1e-6)


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=40),
    st.sampled_from([(1,), (5,), (3, 7), (16, 8, 8)]),
    st.data(),
)
@settings(max_examples=30, deadline=None)
def test_rows_do_not_depend_on_the_batch(
    keys: list[int], shape: tuple[int, ...], data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(keys) - 1))
    batch, alone = torch.tensor(keys), torch.tensor([keys[row]])
    assert torch.equal(normal(batch, shape, stream=1)[row], normal(alone, shape, stream=1)[0])
    assert torch.equal(uniform(batch, 9, stream=1)[row], uniform(alone, 9, stream=1)[0])


@given(st.integers(1, 50), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_shorter_rows_are_prefixes(num: int, more: int) -> None:
    keys = torch.arange(3)
    assert torch.equal(
        normal(keys, (num + more,), stream=0)[:, :num], normal(keys, (num,), stream=0)
    )


def test_uniform_fills_the_open_interval() -> None:
    values = uniform(keys_for(0, "u", indices=range(200)), 2000, stream=0)
    assert 0 < values.min() < 1e-4
    assert 1 - 1e-4 < values.max() < 1
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-4


def test_even_uniforms_leave_no_wide_gap_wherever_they_start() -> None:
    for start in (0, 12_345, 2**33 + 7):
        for num in (2, 3, 16, 64, 377, 1000):
            u = even_uniform(torch.arange(start, start + num), 99)
            assert u.min() > 0.0
            assert u.max() < 1.0
            rising = u.sort().values
            around = torch.cat([rising[1:] - rising[:-1], rising[:1] + 1 - rising[-1:]])
            assert num * around.max() < 2.0
    # a place is a function of position and key alone
    assert even_uniform(torch.tensor([7]), 99) == even_uniform(torch.arange(9), 99)[7]
    assert even_uniform(torch.tensor([7]), 99) != even_uniform(torch.tensor([7]), 99 << 20)


def test_normal_has_the_moments_and_tails_of_a_gaussian() -> None:
    values = normal(keys_for(0, "n", indices=range(100)), (40, 100), stream=0).double()
    flat = values.flatten().numpy()
    count = len(flat)
    assert abs(flat.mean()) < 4 / math.sqrt(count)
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((flat**4).mean() - 3) < 4 * math.sqrt(96 / count)
    assert stats.kstest(flat, "norm").pvalue > 1e-4
    for bound in (2.0, 3.0, 4.0):
        expected = count * 2 * stats.norm.sf(bound)
        assert abs((np.abs(flat) > bound).sum() - expected) < 4 * math.sqrt(expected) + 1


def test_neighbours_are_uncorrelated() -> None:
    """Columns of a row, rows of neighbouring keys, and streams of one key."""
    keys = torch.arange(2000)
    first, second = (normal(keys, (2,), stream=stream) for stream in (0, 1))
    rows = torch.cat((first, second, first.roll(1, 0)), dim=1).numpy()
    correlations = np.corrcoef(rows.T) - np.eye(6)
    assert np.abs(correlations).max() < 4 / math.sqrt(2000)


def test_keys_differ_by_seed_name_and_index() -> None:
    keys = torch.cat(
        [keys_for(seed, name, indices=range(500)) for seed in (0, 1) for name in ("train", "val")]
    )
    assert len(set(keys.tolist())) == 2000
    assert keys.min() >= 0
    assert torch.equal(keys_for(1, "val", indices=[499]), keys[-1:])


def test_empty_shapes_and_batches() -> None:
    assert normal(torch.tensor([1, 2]), (0,), stream=0).shape == (2, 0)
    assert normal(torch.tensor([1, 2]), (), stream=0).shape == (2,)
    assert normal(torch.zeros(0, dtype=torch.int64), (3,), stream=0).shape == (0, 3)


def test_refuses_what_has_no_meaning() -> None:
    keys = torch.tensor([1])
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        uniform(keys, -1, stream=0)
    with pytest.raises(ValueError, match=r"stream must be in \[0, 2\^63\), got -2"):
        normal(keys, (1,), stream=-2)
