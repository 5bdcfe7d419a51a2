"""UViT: a transformer at low resolution between convolutional levels with skip connections.

Levels halve the sides until one place is one token, and double them again. Everything is modulated
by time and pooled text. Text tokens come in by cross-attention in the transformer's blocks, which
are CrossDiT's: beside a CrossDiT only the convolutions differ, and joined tokens would have no
place on the maps of the levels.
Source: arXiv 2301.11093 (simple diffusion), section 3.3 and appendix B; compared in
arXiv 2403.03206, section 5.2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone, BackboneSize
from rectiflow.models.layers.attention import repeat_last
from rectiflow.models.layers.blocks import CrossBlock
from rectiflow.models.layers.embeddings import unpatchify
from rectiflow.models.layers.modulation import FinalLayer, Modulation, Modulator

NORM_EPSILON = 1e-6
CHANNELS_PER_GROUP = 4
#: Side of the convolutions' kernels.
KERNEL = 3
#: A change of level halves or doubles the sides.
STRIDE = 2


@dataclass(frozen=True, kw_only=True)
class UViTConfig(BackboneSize):
    """Size of a UViT: `depth` transformer blocks, log2(patch_size) convolutional levels around.

    Each level has `num_residual_blocks` on the way down and as many on the way up, and half the
    width of the level below, in whole groups of channels.
    """

    num_residual_blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < STRIDE or self.patch_size & (self.patch_size - 1):
            raise ConfigError(
                f"patch_size={self.patch_size}: a UViT's levels halve the sides; give 2, 4, 8, …"
            )
        if self.num_residual_blocks < 1:
            raise ConfigError(f"num_residual_blocks={self.num_residual_blocks} must be at least 1")

    @property
    def title(self) -> str:
        return "UViT"

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the convolutional levels, from the latents' resolution down."""
        num_levels = self.patch_size.bit_length() - 1
        groups = (
            max(1, round(self.hidden_dim / STRIDE**i / CHANNELS_PER_GROUP))
            for i in range(num_levels, 0, -1)
        )
        return tuple(CHANNELS_PER_GROUP * n for n in groups)


def group_norm(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """GroupNorm without learned affine parameters."""
    return F.group_norm(x, x.shape[1] // CHANNELS_PER_GROUP, eps=NORM_EPSILON)


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Each place of a map as a token, row by row."""
    return x.flatten(2).transpose(1, 2)


class ModulatedResidualBlock(nn.Module):
    """GroupNorm–SiLU–conv, twice, around a shortcut; the vector shifts, scales and gates.

    It starts as its shortcut: the identity, or a 1×1 convolution where the channels change.
    """

    def __init__(self, in_channels: int, out_channels: int, *, vector_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, KERNEL, padding=KERNEL // 2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, KERNEL, padding=KERNEL // 2)
        self.adaLN_modulation = Modulation(out_channels, num_chunks=3, vector_dim=vector_dim)
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], vector: Modulator) -> Float[Tensor, "b c2 h w"]:
        shift, scale, gate = (
            chunk.transpose(1, 2)[..., None] for chunk in self.adaLN_modulation.chunks(vector)
        )
        h = self.conv1(F.silu(group_norm(x)))
        h = self.conv2(F.silu(group_norm(h) * (1.0 + scale) + shift))
        return torch.addcmul(self.shortcut(x), gate, h)


class DownLevel(nn.Module):
    """Residual blocks, then half the sides; also returns what each block made, for the way up."""

    def __init__(self, config: UViTConfig, channels: int, below: int) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(
            ModulatedResidualBlock(channels, channels, vector_dim=config.hidden_dim)
            for _ in range(config.num_residual_blocks)
        )
        self.shrink = nn.Conv2d(channels, below, STRIDE, stride=STRIDE)

    def forward(
        self, x: Float[Tensor, "b c h w"], vector: Modulator
    ) -> tuple[Float[Tensor, "b c2 h2 w2"], list[Float[Tensor, "b c h w"]]]:
        made: list[Tensor] = []
        for block in self.residuals:
            x = block(x, vector)
            made.append(x)
        return self.shrink(x), made


class UpLevel(nn.Module):
    """Double the sides, then residual blocks that each take one block's result of the way down."""

    def __init__(self, config: UViTConfig, channels: int, below: int) -> None:
        super().__init__()
        self.grow = nn.Conv2d(below, STRIDE**2 * channels, 1)
        self.residuals = nn.ModuleList(
            ModulatedResidualBlock(2 * channels, channels, vector_dim=config.hidden_dim)
            for _ in range(config.num_residual_blocks)
        )

    def forward(
        self,
        x: Float[Tensor, "b c2 h2 w2"],
        made: list[Float[Tensor, "b c h w"]],
        vector: Modulator,
    ) -> Float[Tensor, "b c h w"]:
        x = F.pixel_shuffle(self.grow(x), STRIDE)
        for block, skip in zip(self.residuals, reversed(made), strict=True):
            x = block(torch.cat([x, skip], dim=1), vector)
        return x


class UViT(Backbone):
    """As `Backbone`; the patch size is how far the levels shrink the latents."""

    def __init__(self, config: UViTConfig) -> None:
        channels = config.level_channels
        entry = nn.Conv2d(config.in_channels, channels[0], KERNEL, padding=KERNEL // 2)
        super().__init__(config, entry)
        below = (*channels[1:], config.hidden_dim)
        self.down = nn.ModuleList(DownLevel(config, c, b) for c, b in zip(channels, below))
        self.transformer_blocks = nn.ModuleList(
            CrossBlock(config.hidden_dim, head_dim=config.head_dim, use_qk_norm=config.use_qk_norm)
            for _ in range(config.depth)
        )
        self.up = nn.ModuleList(UpLevel(config, c, b) for c, b in zip(channels, below))
        self.final_layer = FinalLayer(
            channels[0], config.latent_channels, vector_dim=config.hidden_dim
        )

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer_blocks

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b o h w"]:
        rows, columns = self.token_grid(z_t)
        positions = self.cropped_positions(rows, columns)
        prompt = self.embed(conditioning)
        context = repeat_last(prompt.context, prompt.last_count)
        vector = self.embed_vector(t, prompt.pooled)

        x = self.x_embedder(z_t.to(self.compute_dtype))
        made: list[list[Tensor]] = []
        for level in self.down:
            x, results = level(x, vector)
            made.append(results)
        x = to_tokens(x) + positions
        for block in self.transformer_blocks:
            x = block(x, context, vector)
        x = unpatchify(x, rows=rows, columns=columns, patch_size=1)
        # Indexed by resolution: up[0] is the finest.
        for level, results in zip(reversed(self.up), reversed(made), strict=True):
            x = level(x, results, vector)
        height, width = x.shape[-2:]
        x = self.final_layer(to_tokens(x), vector)
        return unpatchify(x, rows=height, columns=width, patch_size=1)
