"""Transformer blocks with adaLN-Zero: over tokens of one kind, and with a look at the text.

Source: arXiv 2212.09748 (DiT), figure 3; arXiv 2310.00426 (PixArt-α), section 2.3, whose
cross-attention stands between self-attention and feed-forward network, without norm or gate, and
starts at zero; arXiv 2403.03206, figure 2. The second attention of MMDiT-X is that of the released
SD3.5-medium.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.layers.attention import CrossAttention, StreamAttention, joint_attention
from rectiflow.models.layers.feed_forward import FeedForward
from rectiflow.models.layers.modulation import Modulation, Modulator, modulated_norm


class StreamBlock(nn.Module):
    """The weights of one kind of token: modulation, attention's projections, feed-forward network.

    Alone it is DiT's block. Several share one attention in `rectiflow.models.mmdit.JointBlock`;
    `is_last` drops all that follows the attention, `is_dual` gives the tokens a second attention
    among themselves, beside the shared one.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int,
        use_qk_norm: bool,
        is_last: bool = False,
        is_dual: bool = False,
    ) -> None:
        super().__init__()
        # The second attention's shift, scale and gate stand behind the six of every block.
        self.adaLN_modulation = Modulation(dim, num_chunks=2 if is_last else 9 if is_dual else 6)
        self.attn = StreamAttention(
            dim, head_dim=head_dim, use_qk_norm=use_qk_norm, has_output=not is_last
        )
        self.is_dual = is_dual
        if is_dual:
            self.attn2 = StreamAttention(
                dim, head_dim=head_dim, use_qk_norm=use_qk_norm, has_output=True
            )
        if not is_last:
            self.mlp = FeedForward(dim)

    def project(
        self, x: Float[Tensor, "b n d"], shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the modulated tokens, each [b n heads head_dim]."""
        return self.attn.project(modulated_norm(x, shift, scale))

    def add_attended(
        self, x: Float[Tensor, "b n d"], attended: Tensor, gate: Tensor
    ) -> Float[Tensor, "b n d"]:
        """Add the attention's result through its gate."""
        return torch.addcmul(x, gate, self.attn.proj(attended))

    def finish(
        self, x: Float[Tensor, "b n d"], attended: Tensor, modulation: Sequence[Tensor]
    ) -> Float[Tensor, "b n d"]:
        """Tokens as the block got them, and the attention's result → tokens as it leaves them."""
        _, _, gate, *mlp_modulation = modulation[:6]
        after = self.add_attended(x, attended, gate)
        if self.is_dual:
            # Sees the tokens as they came in, not what the first attention made of them.
            shift, scale, gate = modulation[6:]
            (own,) = joint_attention([self.attn2.project(modulated_norm(x, shift, scale))])
            after = torch.addcmul(after, gate, self.attn2.proj(own))
        return self.add_mlp(after, *mlp_modulation)

    def add_mlp(
        self, x: Float[Tensor, "b n d"], shift: Tensor, scale: Tensor, gate: Tensor
    ) -> Float[Tensor, "b n d"]:
        """Add the feed-forward network's result through its gate."""
        return torch.addcmul(x, gate, self.mlp(modulated_norm(x, shift, scale)))

    def forward(
        self, x: Float[Tensor, "b n d"], vector: Modulator, *, num_out: int | None = None
    ) -> Float[Tensor, "b m d"]:
        """All tokens attend to each other; only the last `num_out` go on, if it is given."""
        shift, scale, gate, *mlp_modulation = self.adaLN_modulation.chunks(vector)
        (attended,) = joint_attention([self.project(x, shift, scale)])
        if num_out is not None:
            x, attended = x[:, -num_out:], attended[:, -num_out:]
        return self.add_mlp(self.add_attended(x, attended, gate), *mlp_modulation)


class CrossBlock(nn.Module):
    """Image tokens attend to each other, then to the text, then pass the feed-forward network."""

    def __init__(self, dim: int, *, head_dim: int, use_qk_norm: bool) -> None:
        super().__init__()
        self.x_block = StreamBlock(dim, head_dim=head_dim, use_qk_norm=use_qk_norm)
        self.cross_attn = CrossAttention(dim, head_dim=head_dim, use_qk_norm=use_qk_norm)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b l d"],
        vector: Modulator,
    ) -> Float[Tensor, "b n d"]:
        block = self.x_block
        shift, scale, gate, *mlp_modulation = block.adaLN_modulation.chunks(vector)
        (attended,) = joint_attention([block.project(x, shift, scale)])
        x = block.add_attended(x, attended, gate)
        x = x + self.cross_attn(x, context)
        return block.add_mlp(x, *mlp_modulation)
