"""Named random streams without torch: one seed, many purposes, none disturbing another.

A stream is named by what it is for (`derive_seed(seed, "scene", "val", index)`), so adding a
stream never shifts the numbers of the others. The torch counterpart is `base.philox`.
"""

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every name, in order.

    Names are tagged with their type and length before hashing: ("ab", "c"), ("a", "bc") and
    ("1",), (1,) are four different streams.
    """
    digest = hashlib.sha256(f"rectiflow:{seed}".encode())
    for name in names:
        encoded = str(name).encode()
        tag = "i" if isinstance(name, int) else "s"
        digest.update(f"|{tag}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy's PCG64 generator on the stream (seed, *names)."""
    return np.random.default_rng(derive_seed(seed, *names))
