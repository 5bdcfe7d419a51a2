"""DiT on joined text and image tokens: MM-DiT with a single set of weights.

Source: arXiv 2403.03206, section 5.2.3; block as in arXiv 2212.09748.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.frame import BackboneSize, PatchTransformer
from rectiflow.models.layers.attention import repeat_last
from rectiflow.models.layers.blocks import StreamBlock
from rectiflow.models.layers.modulation import FinalLayer, Modulator


@dataclass(frozen=True, kw_only=True)
class DiTConfig(BackboneSize):
    """Size of a DiT."""

    @property
    def title(self) -> str:
        return "DiT"


class DiT(PatchTransformer):
    """As `Backbone`; the tokens are the text's, then the image's, and pass the same weights.

    The last block lets only image tokens past its attention, since nothing reads the text after.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.transformer_blocks = nn.ModuleList(
            StreamBlock(config.hidden_dim, head_dim=config.head_dim, use_qk_norm=config.use_qk_norm)
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(config.hidden_dim, config.patch_features)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer_blocks

    def transform(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b l d"],
        vector: Modulator,
        *,
        last_count: int,
    ) -> Float[Tensor, "b n d"]:
        tokens = torch.cat([repeat_last(context, last_count), x], dim=1)
        *front, last = self.transformer_blocks
        for block in front:
            tokens = block(tokens, vector)
        return last(tokens, vector, num_out=x.shape[1])
