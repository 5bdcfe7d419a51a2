"""What every backbone has around its blocks: sizes, embeddings, initialisation.

On both walks inside the backbone. `BackboneSize` is the part of a config that data, training and
generation read, `Backbone` the part of a network that they call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.base.config import LATER
from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning, EmbeddedConditioning
from rectiflow.models.layers.attention import HeadNorm
from rectiflow.models.layers.embeddings import (
    TIME_EMBEDDING_DIM,
    PatchEmbedder,
    VectorEmbedder,
    position_grid,
    sinusoidal_time_embedding,
    unpatchify,
)
from rectiflow.models.layers.linear import Linear, ZeroLinear
from rectiflow.models.layers.modulation import FinalLayer, Modulator
from rectiflow.models.precision import compute_dtype

WIDTH_PER_DEPTH = 64
#: Any network of the form (z_t, t, conditioning) → output shaped as z_t.
Network = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True, kw_only=True)
class BackboneSize(ABC):
    """Size of a backbone; `depth` blocks decide the rest unless `width` is given too.

    Without `width` it is 64·depth, as released. Attention has width / head_dim heads.
    `position_side` is the side of the position grid in tokens, the largest picture that fits;
    `base_side` the side that the model is first trained at (both as in `position_grid`).
    `out_channels` is given for a network that paints into pictures, whose input holds a mask and a
    masked picture's latents beside the latents (`models.inpainting`): 33 in, 16 out.
    Source: arXiv 2403.03206, section 4 (depth decides the width).
    """

    depth: int
    width: int | None = None
    head_dim: int = 64
    context_dim: int = 4096
    pooled_dim: int = 2048
    in_channels: int = 16
    patch_size: int = 2
    position_side: int = 192
    base_side: int = 64
    use_qk_norm: bool = False
    out_channels: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"depth={self.depth} must be at least 1")
        if self.head_dim < 1 or self.hidden_dim < 1 or self.hidden_dim % self.head_dim:
            raise ConfigError(
                f"a width of {self.hidden_dim} cannot be cut into heads of head_dim="
                f"{self.head_dim}; give a multiple of it as width"
            )
        if self.hidden_dim % 4:
            raise ConfigError(
                f"width={self.hidden_dim} must be a multiple of 4: sine and cosine of two axes"
            )
        if self.base_side > self.position_side:
            raise ConfigError(
                f"base_side={self.base_side} does not fit into position_side={self.position_side}"
            )
        if self.out_channels is not None and self.in_channels != 2 * self.out_channels + 1:
            raise ConfigError(
                f"out_channels={self.out_channels} does not go with in_channels={self.in_channels}:"
                f" it is for inpainting, where 2·{self.out_channels} + 1 come in; leave it out "
                "where the output has as many as the input"
            )

    @property
    @abstractmethod
    def title(self) -> str:
        """The architecture's name in tables and reports."""

    @property
    def hidden_dim(self) -> int:
        """Features of a token."""
        return WIDTH_PER_DEPTH * self.depth if self.width is None else self.width

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: those of the output, and the first of the input."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def is_inpainting(self) -> bool:
        """Whether it is told a mask and a masked picture."""
        return self.out_channels is not None

    @property
    def patch_features(self) -> int:
        """Numbers in one patch of latents."""
        return self.latent_channels * self.patch_size**2


class Backbone(nn.Module, ABC):
    """(z_t [b c h w], t [b], conditioning) → the network's output, shaped as z_t.

    With `out_channels`, as its first so many channels.

    Raises:
        ValueError: the latents' sides are not multiples of the patch size, or larger than the
            position grid.
    """

    def __init__(self, config: BackboneSize, x_embedder: nn.Module) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.x_embedder = x_embedder
        self.t_embedder = VectorEmbedder(TIME_EMBEDDING_DIM, dim)
        self.y_embedder = VectorEmbedder(config.pooled_dim, dim)
        self.context_embedder = Linear(config.context_dim, dim)
        # Closed form, so neither trained nor stored.
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", self.closed_form_positions(), persistent=False)

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The repeated part, for sharding, recompute and compilation."""

    @abstractmethod
    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b o h w"]: ...

    def closed_form_positions(self) -> Float[Tensor, "side side d"]:
        """The position grid of the config; `pos_embed`, unless a released file brought its own."""
        config = self.config
        return position_grid(config.position_side, config.hidden_dim, base_side=config.base_side)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights anew: `first_weights`, in place."""
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in self.first_weights(generator):
                own[name].copy_(value)

    def first_weights(self, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Each weight's name and a first value from `generator`, on the CPU, one after another.

        Matrices Xavier-uniform, biases zero, norms one, the embedders of time and pooled text
        normal with std 0.02; modulation and output layer zero, so that every block starts as the
        identity and the output as zero (adaLN-Zero). Of a name that comes twice the later value
        counts. Source: arXiv 2212.09748, released initialisation.
        """
        embedders = (self.t_embedder, self.y_embedder)
        names = {module: name for name, module in self.named_modules()}
        for module, name in names.items():
            if isinstance(module, nn.Linear | nn.Conv2d):
                value = torch.empty(module.weight.shape, dtype=module.weight.dtype)
                nn.init.xavier_uniform_(value.flatten(1), generator=generator)
                yield f"{name}.weight", value.zero_() if isinstance(module, ZeroLinear) else value
                if module.bias is not None:
                    yield f"{name}.bias", torch.zeros(module.bias.shape)
            elif isinstance(module, HeadNorm):
                yield f"{name}.weight", torch.ones(module.normalized_shape)
        for linear in (linear for embedder in embedders for linear in embedder.linears):
            value = torch.empty(linear.weight.shape, dtype=linear.weight.dtype)
            nn.init.normal_(value, std=0.02, generator=generator)
            yield f"{names[linear]}.weight", value

    @property
    def compute_dtype(self) -> torch.dtype:
        """What latents and text are cast to on their way in; times stay float32 until embedded.

        That of the weights, but on a CPU what it is fast at if they are held in 16 bits.
        """
        weight = self.context_embedder.weight
        if weight.dtype == torch.float32 or weight.device.type != "cpu":
            return weight.dtype
        return compute_dtype("auto", weight.device)

    def token_grid(self, z_t: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        """Rows and columns of tokens that the latents are cut into."""
        p, (height, width) = self.config.patch_size, z_t.shape[-2:]
        if height % p or width % p:
            raise ValueError(
                f"latents are {height}×{width}; both sides must be multiples of the patch size {p}"
            )
        return height // p, width // p

    def cropped_positions(self, rows: int, columns: int) -> Float[Tensor, "n d"]:
        """The middle rows×columns of the position grid, flattened row by row."""
        side = self.config.position_side
        if rows > side or columns > side:
            raise ValueError(
                f"latents of {rows}×{columns} tokens are larger than the position grid "
                f"({side}×{side}); raise position_side"
            )
        top, left = (side - rows) // 2, (side - columns) // 2
        positions = self.pos_embed[top : top + rows, left : left + columns].flatten(0, 1)
        return positions.to(self.compute_dtype)

    def embed(self, conditioning: Conditioning) -> EmbeddedConditioning:
        """Text tokens and pooled text at the backbone's width; unchanged if they are already."""
        if isinstance(conditioning, EmbeddedConditioning):
            return conditioning
        dtype = self.compute_dtype
        return EmbeddedConditioning(
            context=self.context_embedder(conditioning.context.to(dtype)),
            pooled=self.y_embedder(conditioning.pooled.to(dtype)),
            last_count=conditioning.last_count,
        )

    def embed_vector(self, t: Float[Tensor, " b"], pooled: Float[Tensor, "b p"]) -> Modulator:
        """What modulates every layer: time and pooled text, the latter as `embed` gives it."""
        times = sinusoidal_time_embedding(t).to(self.compute_dtype)
        return self.t_embedder(times) + pooled


class PatchTransformer(Backbone):
    """A backbone whose latents become tokens patch by patch and whose blocks see tokens only."""

    final_layer: FinalLayer

    def __init__(self, config: BackboneSize) -> None:
        super().__init__(
            config, PatchEmbedder(config.in_channels, config.patch_size, config.hidden_dim)
        )

    @abstractmethod
    def transform(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b l d"],
        vector: Modulator,
        *,
        last_count: int,
    ) -> Float[Tensor, "b n d"]:
        """Image tokens through all blocks; `last_count` is that of `Conditioning`."""

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b o h w"]:
        rows, columns = self.token_grid(z_t)
        x = self.x_embedder(z_t.to(self.compute_dtype)) + self.cropped_positions(rows, columns)
        prompt = self.embed(conditioning)
        vector = self.embed_vector(t, prompt.pooled)
        x = self.transform(x, prompt.context, vector, last_count=prompt.last_count)
        x = self.final_layer(x, vector)
        return unpatchify(x, rows=rows, columns=columns, patch_size=self.config.patch_size)
