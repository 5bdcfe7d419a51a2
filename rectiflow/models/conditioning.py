"""What a backbone is told about the prompt: a token sequence and a vector, and nothing else.

On both walks: `models.text` assembles it, backbones read it, guidance batches it.
Source: arXiv 2403.03206, section 4 (c_ctxt and c_vec).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """A batch of prompts as a backbone sees them."""

    context: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b p"]

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return Conditioning(context=self.context[rows], pooled=self.pooled[rows])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        return Conditioning(
            context=self.context.to(device=device, dtype=dtype),
            pooled=self.pooled.to(device=device, dtype=dtype),
        )

    def expand(self, num: int) -> Conditioning:
        """Repeat a batch of one prompt `num` times, without copying."""
        if len(self) != 1:
            raise ValueError(f"only a batch of one prompt expands, this one has {len(self)}")
        return Conditioning(
            context=self.context.expand(num, -1, -1), pooled=self.pooled.expand(num, -1)
        )

    @staticmethod
    def concat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches along the batch dimension; lengths and widths must agree."""
        return Conditioning(
            context=torch.cat([part.context for part in parts]),
            pooled=torch.cat([part.pooled for part in parts]),
        )

    @staticmethod
    def where(
        choose_first: Bool[Tensor, " b"], first: Conditioning, second: Conditioning
    ) -> Conditioning:
        """Row i comes from `first` where `choose_first[i]`, otherwise from `second`."""
        return Conditioning(
            context=torch.where(choose_first[:, None, None], first.context, second.context),
            pooled=torch.where(choose_first[:, None], first.pooled, second.pooled),
        )
