"""A backbone whose modulation is computed for many times at once, and looked up in each step.

The modulation of every layer is a function of time and pooled text alone, both known before the
first step, and holds a third of an MM-DiT's weights: reading them in every step for a handful of
rows costs more than to multiply by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rectiflow.models.conditioning import EmbeddedConditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.modulation import Modulation
from rectiflow.models.substitution import with_modules

#: With more times than these in a table, it would be as large as the modulation's weights.
MAX_TIMES = 64


class TabulatedModulation(nn.Module):
    """What a `Modulation` makes of each of a list of vectors, found by the vector's place there."""

    table: Float[Tensor, "n d"]

    def __init__(self, num_chunks: int) -> None:
        super().__init__()
        self.num_chunks = num_chunks

    def fill(self, modulation: nn.Module, vectors: Sequence[Float[Tensor, "n v"]]) -> None:
        """Have these vectors in the table, and no others."""
        # Prompt by prompt, so that a prompt's rows have the same bits whatever others there are.
        rows = [modulation(row) for row in vectors]
        # One more, of NaN, for what is not in the list.
        unknown = torch.full_like(rows[0][:1], torch.nan)
        self.table = torch.cat([*rows, unknown])

    def chunks(self, places: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b 1 d"], ...]:
        """As `Modulation.chunks`, of the vectors at those places."""
        return self.table[places][:, None, :].chunk(self.num_chunks, dim=-1)


def tabulate(
    backbone: Backbone, batches: Sequence[EmbeddedConditioning], times: Float[Tensor, " n"]
) -> tuple[Backbone, list[EmbeddedConditioning]]:
    """The backbone with its modulation tabulated, and the prompts as it is to be told them.

    It knows the prompts of `batches` at `times` only, and gives NaN at any other. All weights but
    those of the modulation are shared with the given one, which stays as it is. Of more than
    `MAX_TIMES`, so many neighbours at a time are in the tables, which are filled anew when a call
    is for others: one drawing uses it, whose calls are each for one time.
    """
    # Drawing begins at the last of them.
    *others, here = slices = times.unique().split(MAX_TIMES)
    pooled_texts = [row for batch in batches for row in batch.pooled]
    num_prompts = len(pooled_texts)
    tables: dict[nn.Module, TabulatedModulation] = {
        module: TabulatedModulation(module.num_chunks)
        for module in backbone.modules()
        if isinstance(module, Modulation)
    }

    def fill() -> None:
        vectors = [backbone.embed_vector(here, row.expand(len(here), -1)) for row in pooled_texts]
        for modulation, table in tables.items():
            table.fill(modulation, vectors)

    def find(t: Float[Tensor, " b"], pooled: Float[Tensor, "b p"]) -> Int[Tensor, " b"]:
        """As `Backbone.embed_vector`, where each prompt's number stands for its pooled text."""
        nonlocal here
        # To ask costs a GPU its head start.
        if others and not torch.isin(t[0], here):
            for wanted in slices:
                if torch.isin(t[0], wanted):
                    here = wanted
                    fill()
        is_here = here == t[:, None]
        place = pooled[:, 0].long() * len(here) + is_here.int().argmax(dim=1)
        return torch.where(is_here.any(dim=1), place, num_prompts * len(here))

    fill()
    tabulated = with_modules(backbone, tables)
    assert isinstance(tabulated, Backbone)
    # Of this instance, where it finds the vector's place instead of the vector.
    tabulated.embed_vector = find
    numbers = torch.arange(num_prompts, device=times.device, dtype=torch.float32)[:, None]
    rows = numbers.split([len(batch) for batch in batches])
    return tabulated, [replace(batch, pooled=row) for batch, row in zip(batches, rows, strict=True)]
