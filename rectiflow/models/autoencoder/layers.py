"""Blocks of the convolutional autoencoder: residual block, mid-block attention, resampling.

Tensor names follow the published layout of latent-diffusion autoencoders, so that released files
map onto these modules one to one. Source: arXiv 2112.10752, appendix; padding and group-norm
epsilon as in the released SD3 autoencoder.

Where no gradients are recorded the same functions are computed more cheaply: `Upsample` by a
transposed convolution, activations and sums in place, and all of it in `inference_layout`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPSILON = 1e-6


def activate(norm: nn.GroupNorm, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """SiLU of the normalised map, the nonlinearity in place where no gradients are recorded."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def inference_layout(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The same map in the memory layout in which a whole half of the network is fastest.

    Convolutions and norms keep the layout of what they are given. Channels last where it wins
    whatever the size: on CPUs, and in 16 bit elsewhere. As it came where gradients are recorded,
    for a training loop chooses for weights and images together.
    """
    if torch.is_grad_enabled() or (x.device.type != "cpu" and x.element_size() > 2):
        return x
    return x.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """GroupNorm–SiLU–conv, twice, around a skip connection ([b c h w] → [b c' h w])."""

    def __init__(self, in_channels: int, out_channels: int, num_norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_norm_groups, in_channels, eps=NORM_EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_norm_groups, out_channels, eps=NORM_EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        # Each map takes the name of the one before, which frees it before the next is made.
        h = activate(self.norm1, x)
        h = self.conv1(h)
        h = activate(self.norm2, h)
        h = self.conv2(h)
        skip = self.nin_shortcut(x)
        return skip + h if torch.is_grad_enabled() else h.add_(skip)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all pixels, with a skip connection."""

    def __init__(self, channels: int, num_norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_norm_groups, channels, eps=NORM_EPSILON)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], *, num_queries_at_once: int | None = None
    ) -> Float[Tensor, "b c h w"]:
        """As many queries at once as are given, or all: their weights on all pixels take memory."""
        b, c, height, width = x.shape
        normed = self.norm(x)
        # A pixel's channels side by side: the kernels that never hold all weights ask for that.
        q, k, v = (
            conv(normed).reshape(b, 1, c, height * width).transpose(2, 3).contiguous()
            for conv in (self.q, self.k, self.v)
        )
        parts = q.split(num_queries_at_once or height * width, dim=2)
        attended = torch.cat([F.scaled_dot_product_attention(part, k, v) for part in parts], dim=2)
        return x + self.proj_out(attended.transpose(2, 3).reshape(b, c, height, width))


class Downsample(nn.Module):
    """Halve both sides by a strided convolution, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a convolution.

    Without gradients the two are one transposed convolution, which never makes the doubled map and
    multiplies 16 times a pixel and pair of channels instead of 36.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        if torch.is_grad_enabled():
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return double(x, self.summed_kernel(), self.conv.bias)

    def summed_kernel(self) -> Float[Tensor, "c_in c_out 4 4"]:
        """The kernel of `double`: sums of the 3×3 kernel's entries, made in float32 at least.

        Pixel i becomes rows 2i and 2i+1, and row o of the result takes row o+k−1 by entry k. So
        pixel i reaches row 2i−1+a by the sum of those entries k for which a + k is 2 or 3.
        """
        weight = self.conv.weight
        kernel = weight.to(torch.promote_types(weight.dtype, torch.float32))
        # Rows and columns in front: whole matrices are summed faster than entries far apart.
        kernel = kernel.permute(2, 3, 1, 0).contiguous()
        for dim in (0, 1):
            first, middle, last = kernel.unbind(dim)
            kernel = torch.stack((last, middle + last, first + middle, first), dim)
        return kernel.to(weight.dtype).permute(2, 3, 0, 1)


def double(
    x: Float[Tensor, "b c_in h w"],
    summed_kernel: Float[Tensor, "c_in c_out 4 4"],
    bias: Float[Tensor, " c_out"] | None,
) -> Float[Tensor, "b c_out h2 w2"]:
    """Both sides doubled: pixel i is added to rows and columns 2i−1 … 2i+2 by the kernel."""
    return F.conv_transpose2d(x, summed_kernel, bias, stride=2, padding=1)


class MidBlock(nn.Module):
    """Residual block, optional attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, num_norm_groups: int, *, use_attention: bool) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, num_norm_groups)
        self.attn_1 = (
            SpatialAttention(channels, num_norm_groups) if use_attention else nn.Identity()
        )
        self.block_2 = ResidualBlock(channels, channels, num_norm_groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, then an optional change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        num_norm_groups: int,
        resample: type[Downsample] | type[Upsample] | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(in_channels if j == 0 else out_channels, out_channels, num_norm_groups)
            for j in range(num_blocks)
        )
        self.resample = resample(out_channels) if resample is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.resample(x)


@dataclass(frozen=True, kw_only=True)
class HalfSize:
    """Size of one half of the autoencoder; levels run from full resolution to the latents'."""

    image_channels: int
    latent_channels: int
    level_channels: tuple[int, ...]
    num_blocks: int
    num_norm_groups: int
    use_mid_attention: bool


class Encoder(nn.Module):
    """Images [b 3 H W] → parameters of the latent distribution [b 2z H/f W/f]."""

    def __init__(self, size: HalfSize) -> None:
        super().__init__()
        level_channels, num_norm_groups = size.level_channels, size.num_norm_groups
        self.conv_in = nn.Conv2d(size.image_channels, level_channels[0], 3, padding=1)
        inputs = (level_channels[0], *level_channels[:-1])
        last = len(level_channels) - 1
        self.down = nn.ModuleList(
            Level(c_in, c_out, size.num_blocks, num_norm_groups, Downsample if i < last else None)
            for i, (c_in, c_out) in enumerate(zip(inputs, level_channels, strict=True))
        )
        self.mid = MidBlock(
            level_channels[-1], num_norm_groups, use_attention=size.use_mid_attention
        )
        self.norm_out = nn.GroupNorm(num_norm_groups, level_channels[-1], eps=NORM_EPSILON)
        self.conv_out = nn.Conv2d(level_channels[-1], 2 * size.latent_channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(activate(self.norm_out, self.mid(h)))


class Decoder(nn.Module):
    """Raw latents [b z h w] → images [b 3 fh fw]; one block more a level than the encoder."""

    def __init__(self, size: HalfSize) -> None:
        super().__init__()
        level_channels, num_norm_groups = size.level_channels, size.num_norm_groups
        top = level_channels[-1]
        self.conv_in = nn.Conv2d(size.latent_channels, top, 3, padding=1)
        self.mid = MidBlock(top, num_norm_groups, use_attention=size.use_mid_attention)
        # Levels are indexed by resolution as in the published files: up[0] is the finest.
        inputs = (*level_channels[1:], top)
        self.up = nn.ModuleList(
            Level(c_in, c_out, size.num_blocks + 1, num_norm_groups, Upsample if i > 0 else None)
            for i, (c_in, c_out) in enumerate(zip(inputs, level_channels, strict=True))
        )
        self.norm_out = nn.GroupNorm(num_norm_groups, level_channels[0], eps=NORM_EPSILON)
        self.conv_out = nn.Conv2d(level_channels[0], size.image_channels, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c h2 w2"]:
        h = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(activate(self.norm_out, h))
