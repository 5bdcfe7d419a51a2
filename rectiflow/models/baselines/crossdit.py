"""CrossDiT: DiT over image tokens, with cross-attention to the text in every block.

Source: arXiv 2403.03206, section 5.2.3; block as in arXiv 2310.00426 (PixArt-α).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.frame import BackboneSize, PatchTransformer
from rectiflow.models.layers.attention import repeat_last
from rectiflow.models.layers.blocks import CrossBlock
from rectiflow.models.layers.modulation import FinalLayer, Modulator


@dataclass(frozen=True, kw_only=True)
class CrossDiTConfig(BackboneSize):
    """Size of a CrossDiT."""

    @property
    def title(self) -> str:
        return "CrossDiT"


class CrossDiT(PatchTransformer):
    """As `Backbone`; text tokens are only looked at and stay as they were embedded."""

    def __init__(self, config: CrossDiTConfig) -> None:
        super().__init__(config)
        self.transformer_blocks = nn.ModuleList(
            CrossBlock(config.hidden_dim, head_dim=config.head_dim, use_qk_norm=config.use_qk_norm)
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
        context = repeat_last(context, last_count)
        for block in self.transformer_blocks:
            x = block(x, context, vector)
        return x
