"""What a backbone is told about the prompt: a token sequence and a vector, and nothing else.

On both walks: `models.text` assembles it, backbones read it, guidance batches it.
Source: arXiv 2403.03206, section 4 (c_ctxt and c_vec).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """A batch of prompts as a backbone sees them.

    The last token of `context` stands for `last_count` equal ones. Text tokens have no positions,
    so what is equal stays equal through every block, and costs the work of one token.
    """

    context: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b p"]
    last_count: int = 1

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return self._each(lambda tensor: tensor[rows])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        return self._each(lambda tensor: tensor.to(device=device, dtype=dtype))

    def expand(self, num: int) -> Conditioning:
        """Repeat a batch of one prompt `num` times, without copying."""
        if len(self) != 1:
            raise ValueError(f"only a batch of one prompt expands, this one has {len(self)}")
        return self._each(lambda tensor: tensor.expand(num, *tensor.shape[1:]))

    def with_last_as_one(self, count: int) -> Conditioning:
        """The same with its last `count` tokens, which are equal in every row, held as one."""
        return replace(self, context=self.context[:, : (1 - count) or None], last_count=count)

    def with_all_tokens(self) -> Conditioning:
        """The same with the last token as often as it counts."""
        last = self.context[:, -1:].expand(-1, self.last_count, -1)
        return replace(self, context=torch.cat([self.context[:, :-1], last], dim=1), last_count=1)

    @staticmethod
    def concat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches along the batch dimension; lengths, widths and counts must agree."""
        counts = {part.last_count for part in parts}
        if len(counts) > 1:
            raise ValueError(f"last tokens that stand for {sorted(counts)} tokens do not join")
        return replace(
            parts[0],
            context=torch.cat([part.context for part in parts]),
            pooled=torch.cat([part.pooled for part in parts]),
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return replace(self, context=change(self.context), pooled=change(self.pooled))


@dataclass(frozen=True, kw_only=True)
class EmbeddedConditioning(Conditioning):
    """Prompts at the width of one backbone, which made them by `Backbone.embed`.

    They are the same at all times, so that a drawing embeds them once. What is made from them is
    of this class too.
    """
