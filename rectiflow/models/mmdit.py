"""MM-DiT: text and image tokens with weights of their own, joined in attention.

On both walks the backbone. Module and tensor names are those of the released SD3 files.
Source: arXiv 2403.03206, section 4 and figure 2; sizes as released (width = 64·depth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.layers.attention import HEAD_DIM, StreamAttention, joint_attention
from rectiflow.models.layers.embeddings import (
    TIME_EMBEDDING_DIM,
    PatchEmbedder,
    VectorEmbedder,
    position_grid,
    sinusoidal_time_embedding,
    unpatchify,
)
from rectiflow.models.layers.feed_forward import FeedForward
from rectiflow.models.layers.modulation import Modulation, modulated_norm


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Size of an MM-DiT; everything else follows from `depth`.

    `position_side` is the side of the position grid in tokens, the largest picture that fits;
    `base_side` the side that the model is first trained at (both as in `position_grid`).
    """

    depth: int
    context_dim: int = 4096
    pooled_dim: int = 2048
    in_channels: int = 16
    patch_size: int = 2
    position_side: int = 192
    base_side: int = 64
    use_qk_norm: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"depth={self.depth} must be at least 1")
        if self.base_side > self.position_side:
            raise ConfigError(
                f"base_side={self.base_side} does not fit into position_side={self.position_side}"
            )

    @property
    def hidden_dim(self) -> int:
        return HEAD_DIM * self.depth


class StreamBlock(nn.Module):
    """One stream's half of a block; `is_last` drops all that follows the attention."""

    def __init__(self, dim: int, *, use_qk_norm: bool, is_last: bool = False) -> None:
        super().__init__()
        self.adaLN_modulation = Modulation(dim, num_chunks=2 if is_last else 6)
        self.attn = StreamAttention(dim, use_qk_norm=use_qk_norm, has_output=not is_last)
        if not is_last:
            self.mlp = FeedForward(dim)

    def finish(
        self, x: Float[Tensor, "b n d"], attended: Tensor, modulation: Sequence[Tensor]
    ) -> Float[Tensor, "b n d"]:
        """Add the attention's result and the feed-forward network's, each through its gate."""
        gate_attn, shift, scale, gate_mlp = modulation
        x = torch.addcmul(x, gate_attn, self.attn.proj(attended))
        return torch.addcmul(x, gate_mlp, self.mlp(modulated_norm(x, shift, scale)))


class JointBlock(nn.Module):
    """Both streams' blocks around one joint attention.

    With `is_last`, the text only serves the attention and its tokens come back as None.
    """

    def __init__(self, dim: int, *, use_qk_norm: bool, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.context_block = StreamBlock(dim, use_qk_norm=use_qk_norm, is_last=is_last)
        self.x_block = StreamBlock(dim, use_qk_norm=use_qk_norm)

    def forward(
        self,
        context: Float[Tensor, "b l d"],
        x: Float[Tensor, "b n d"],
        vector: Float[Tensor, "b d"],
    ) -> tuple[Float[Tensor, "b l d"] | None, Float[Tensor, "b n d"]]:
        c_block, x_block = self.context_block, self.x_block
        c_shift, c_scale, *c_rest = c_block.adaLN_modulation.chunks(vector)
        x_shift, x_scale, *x_rest = x_block.adaLN_modulation.chunks(vector)
        attended_context, attended_x = joint_attention(
            [
                c_block.attn.project(modulated_norm(context, c_shift, c_scale)),
                x_block.attn.project(modulated_norm(x, x_shift, x_scale)),
            ]
        )
        x = x_block.finish(x, attended_x, x_rest)
        if self.is_last:
            return None, x
        return c_block.finish(context, attended_context, c_rest), x


class FinalLayer(nn.Module):
    """Modulated norm, then a linear map to the features of one patch; starts at zero."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.adaLN_modulation = Modulation(dim, num_chunks=2)
        self.linear = nn.Linear(dim, out_features)

    def forward(
        self, x: Float[Tensor, "b n d"], vector: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n o"]:
        shift, scale = self.adaLN_modulation.chunks(vector)
        return self.linear(modulated_norm(x, shift, scale))


class MMDiT(nn.Module):
    """(z_t [b c h w], t [b], conditioning) → the network's output, shaped as z_t.

    Raises:
        ValueError: the latents' sides are not multiples of the patch size, or larger than the
            position grid.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.x_embedder = PatchEmbedder(config.in_channels, config.patch_size, dim)
        self.t_embedder = VectorEmbedder(TIME_EMBEDDING_DIM, dim)
        self.y_embedder = VectorEmbedder(config.pooled_dim, dim)
        self.context_embedder = nn.Linear(config.context_dim, dim)
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, use_qk_norm=config.use_qk_norm, is_last=i == config.depth - 1)
            for i in range(config.depth)
        )
        self.final_layer = FinalLayer(dim, config.patch_size**2 * config.in_channels)
        grid = position_grid(config.position_side, dim, base_side=config.base_side)
        # Closed form, so neither trained nor stored.
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", grid, persistent=False)

        self._initialize_zero_parts()

    def _initialize_zero_parts(self) -> None:
        """Every block starts as the identity and the output as zero (adaLN-Zero)."""
        modulations = [m for m in self.modules() if isinstance(m, Modulation)]
        for module in (*modulations, self.final_layer.linear):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights anew from `generator` (arXiv 2212.09748, released initialisation).

        Matrices Xavier-uniform, biases zero, the embedders of time and pooled text normal with
        std 0.02, modulation and output layer zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedder in (self.t_embedder, self.y_embedder):
            for linear in embedder.linears:
                nn.init.normal_(linear.weight, std=0.02, generator=generator)
        self._initialize_zero_parts()

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated part, for sharding, recompute and compilation."""
        return self.joint_blocks

    def cropped_positions(self, rows: int, columns: int) -> Float[Tensor, "n d"]:
        """The middle rows×columns of the position grid, flattened row by row."""
        side = self.config.position_side
        if rows > side or columns > side:
            raise ValueError(
                f"latents of {rows}×{columns} tokens are larger than the position grid "
                f"({side}×{side}); raise position_side"
            )
        top, left = (side - rows) // 2, (side - columns) // 2
        return self.pos_embed[top : top + rows, left : left + columns].flatten(0, 1)

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        p = self.config.patch_size
        height, width = z_t.shape[-2:]
        if height % p or width % p:
            raise ValueError(
                f"latents are {height}×{width}; both sides must be multiples of the patch size {p}"
            )
        rows, columns = height // p, width // p
        x = self.x_embedder(z_t) + self.cropped_positions(rows, columns)
        context: Tensor | None = self.context_embedder(conditioning.context)
        time_vector = self.t_embedder(sinusoidal_time_embedding(t))
        vector = time_vector + self.y_embedder(conditioning.pooled)
        for block in self.joint_blocks:
            context, x = block(context, x, vector)
        return unpatchify(self.final_layer(x, vector), rows=rows, columns=columns, patch_size=p)
