"""Token routing: in training, random image tokens pass by some blocks and so cost nothing there.

On the walk of a sample inside `step`; validation and sampling send all tokens through all blocks.
Source: arXiv 2501.04765 (TREAD).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from rectiflow.base import philox
from rectiflow.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenRouting:
    """A `share` of each sample's image tokens, drawn anew each time, passes by a run of blocks.

    They leave before block `first` and are back after block `last`, counted from 0; the backbone's
    last block sees all tokens. `share` 0 turns it off; the paper takes 0.5, from an early block to
    one near the end.

    Raises:
        ConfigError: a number out of its range.
    """

    share: float = 0.0
    first: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ConfigError(
                f"routing.share is {self.share}; give a part of the tokens, from 0 to below 1"
            )
        if not 0 <= self.first <= self.last:
            raise ConfigError(
                f"routing goes from block {self.first} to {self.last}; give two numbers from 0 on, "
                "the first not above the last"
            )

    @property
    def is_on(self) -> bool:
        return self.share > 0.0

    def num_kept(self, num_tokens: int) -> int:
        """How many of a sample's tokens go through the blocks: at least one."""
        return max(1, num_tokens - round(self.share * num_tokens))

    def choose(
        self, keys: Int[Tensor, " b"], num_tokens: int, *, stream: int
    ) -> Int[Tensor, "b m"]:
        """The places, in rising order, of each sample's tokens that go through the blocks."""
        ranks = philox.uniform(keys, num_tokens, stream=stream).argsort(dim=1, stable=True)
        return ranks[:, : self.num_kept(num_tokens)].sort(dim=1).values
