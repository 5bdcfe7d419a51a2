"""Counter-based random numbers in torch: row i is a function of (keys[i], stream) alone.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in int64
arithmetic. Normals use Box-Muller built from additions, multiplications, divisions and square
roots only. IEEE 754 fixes the result of each, so a row has the same bits alone or in any batch,
on any processor; a vendor's `log` or `cos` would promise neither.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from rectiflow.base.seeds import derive_seed

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
# The stream that keys_for draws from; callers' streams are small non-negative numbers.
_KEY_STREAM = 0x6B657973

# 2·(s + s^3/3 + s^5/5 + ...) = log((1+s)/(1-s)), for |s| <= 0.172: 2e-14 relative
_LOG_SERIES = tuple(2.0 / n for n in range(1, 17, 2))
# Taylor series of sin and cos on [-pi/4, pi/4]: 1e-13
_SIN_SERIES = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(7))
_COS_SERIES = tuple((-1.0) ** n / math.factorial(2 * n) for n in range(8))


def uniform(keys: Int[Tensor, " b"], num: int, *, stream: int) -> Float32[Tensor, "b num"]:
    """`num` float32 values a row, uniform in the open interval (0, 1), on a grid of 2^-23.

    Raises:
        ValueError: a negative `num`, or a `stream` outside [0, 2^63).
    """
    # 23 bits and a half step: with 24 the largest value would round to 1.
    return ((_words(keys, num, stream) >> 9).float() + 0.5) * 2.0**-23


def even_uniform(positions: Int[Tensor, " b"], key: int) -> Float32[Tensor, " b"]:
    """A value in (0, 1) for each position, such that any run of positions is evenly spread.

    A Weyl sequence: position · (golden ratio) modulo 1, begun at key / 2^32 (give a derived seed).
    Among n neighbouring positions no gap is wider than 2 / n (the three-gap theorem), whatever
    their start; independent values leave gaps of about log(n) / n. On the grid of `uniform`.
    """
    # int64 products wrap modulo 2^64, which the mask does not see.
    word = (positions.to(torch.int64) * _WEYL[0] + key) & _MASK
    return ((word >> 9).float() + 0.5) * 2.0**-23


def normal(
    keys: Int[Tensor, " b"], shape: Sequence[int], *, stream: int
) -> Float32[Tensor, "b ..."]:
    """Standard normal float32 values, [b, *shape], by Box-Muller in float64.

    Raises:
        ValueError: a negative size, or a `stream` outside [0, 2^63).
    """
    num = math.prod(shape)
    words = _words(keys, num + num % 2, stream).unflatten(1, (-1, 2))
    # radius = sqrt(-2 log u), u in (0, 1); at most 6.8
    u = (words[..., 0].double() + 0.5) * 2.0**-32
    radius = (_log(u) * -2.0).sqrt()
    # 30 bits choose a point on the arc [-pi/4, pi/4], two bits the quarter that it is carried to
    turn = words[..., 1]
    angle = (((turn >> 2).double() + 0.5) * 2.0**-30 - 0.5) * (math.pi / 2)
    square = angle * angle
    sine = angle * _polynomial(square, _SIN_SERIES)
    cosine = _polynomial(square, _COS_SERIES) * (1.0 - (turn & 2).double())
    is_swapped = (turn & 1).bool()
    pair = torch.stack(
        (torch.where(is_swapped, sine, cosine), torch.where(is_swapped, cosine, sine)), dim=-1
    )
    values = (radius.unsqueeze(-1) * pair).flatten(1)[:, :num]
    return values.float().reshape(len(keys), *shape)


def keys_for(
    seed: int, *names: str | int, indices: Int[Tensor, " b"] | Sequence[int]
) -> Int64[Tensor, " b"]:
    """One 63-bit key for each index, on the stream (seed, *names) of `base.seeds`."""
    index = torch.as_tensor(indices, dtype=torch.int64)
    key = torch.full_like(index, derive_seed(seed, *names))
    stream = torch.full_like(index, _KEY_STREAM)
    counter = (index & _MASK, (index >> 32) & _MASK, stream, torch.zeros_like(index))
    low, high, _, _ = philox_block(counter, (key & _MASK, (key >> 32) & _MASK))
    return low | ((high >> 1) << 32)


def philox_block(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Philox4x32-10 block: four counter words and two key words to four random words.

    Each word is an int64 tensor with values in [0, 2^32); all broadcast against each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        # int64 products wrap modulo 2^64; masks after the shift make the signed shift unsigned
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(keys: Int[Tensor, " b"], num: int, stream: int) -> Int64[Tensor, "b num"]:
    """`num` random 32-bit words a row: blocks 0, 1, ... of the counter (block, stream)."""
    if num < 0:
        raise ValueError(f"the number of random values must not be negative, got {num}")
    if not 0 <= stream < 2**63:
        raise ValueError(f"stream must be in [0, 2^63), got {stream}")
    key = keys.to(torch.int64).unsqueeze(1)
    block = torch.arange((num + 3) // 4, device=keys.device).unsqueeze(0)
    counter = (
        block & _MASK,
        block >> 32,
        torch.full_like(block, stream & _MASK),
        torch.full_like(block, stream >> 32),
    )
    words = philox_block(counter, (key & _MASK, (key >> 32) & _MASK))
    return torch.stack(words, dim=-1).flatten(1)[:, :num]


def _log(u: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """log(u) for u in (0, 1): u = m·2^e with m in [sqrt(1/2), sqrt(2)), then a series in s."""
    mantissa, exponent = torch.frexp(u)
    is_low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(is_low, mantissa * 2.0, mantissa)
    exponent = exponent.double() - is_low.double()
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * math.log(2.0) + s * _polynomial(s * s, _LOG_SERIES)


def _polynomial(x: Float[Tensor, "*n"], coefficients: Sequence[float]) -> Float[Tensor, "*n"]:
    """The sum of coefficients[n]·x^n by Horner's rule, each step rounded on its own."""
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value
