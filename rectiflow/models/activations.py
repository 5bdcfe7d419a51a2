"""What one forward pass of a backbone keeps for its backward pass, from its config alone.

The counterpart of `models.flops`: a term for each thing that PyTorch's derivatives save. On a CPU
the tests count what they do save; for CUDA the terms follow the documented lists of autocast.
Weights are not counted, nor the copies that autocast makes of them (`weight_copies`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.baselines.crossdit import CrossDiTConfig
from rectiflow.models.baselines.dit import DiTConfig
from rectiflow.models.baselines.uvit import CHANNELS_PER_GROUP, STRIDE, UViTConfig
from rectiflow.models.flops import InputSize, num_image_tokens
from rectiflow.models.layers.embeddings import TIME_EMBEDDING_DIM
from rectiflow.models.layers.feed_forward import MLP_RATIO
from rectiflow.models.mmdit import MMDiTConfig


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Numbers kept: `narrow` ones in the type of matrix products, `wide` ones in float32."""

    narrow: int = 0
    wide: int = 0

    def __add__(self, other: Kept) -> Kept:
        return Kept(narrow=self.narrow + other.narrow, wide=self.wide + other.wide)

    def __rmul__(self, number: int) -> Kept:
        return Kept(narrow=number * self.narrow, wide=number * self.wide)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes where matrix products run in `dtype`."""
        return dtype.itemsize * self.narrow + 4 * self.wide


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a device computes what autocast leaves open.

    On CUDA autocast norms in float32 and adds to a float32 stream in float32; on a CPU types stay
    as they come. `has_fused_attention` is False where the weights of all pairs of tokens are kept.
    """

    dtype: torch.dtype
    is_cuda: bool
    has_fused_attention: bool

    @classmethod
    def of(cls, dtype: torch.dtype, device_type: str) -> Arithmetic:
        """As `layers.attention` chooses its kernel for a device."""
        is_cuda = device_type == "cuda"
        return cls(
            dtype=dtype,
            is_cuda=is_cuda,
            has_fused_attention=is_cuda or dtype != torch.bfloat16,
        )


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that a backbone keeps for one sample, of a batch of more than one.

    `blocks` are all that the blocks keep, `largest_block` the most of one. Of a block that is
    computed a second time, only its share of `inputs` is kept; or also that of `products`, the
    results of its matrix products and attention: `largest_rest` is the most that one block keeps
    beside them. `around` is kept either way.
    """

    around: int
    blocks: int
    largest_block: int
    largest_rest: int
    inputs: int
    products: int


def activations_of(
    config: BackboneConfig,
    size: InputSize,
    arithmetic: Arithmetic,
    *,
    lora_rank: int | None = None,
) -> Activations:
    """What is kept for one sample; with `lora_rank` where a LoRA alone is trained (`models.lora`).

    Raises:
        ConfigError: the latents do not divide into patches.
    """
    count = _Count(config, size, arithmetic, lora_rank)
    dtype, blocks = arithmetic.dtype, count.blocks()
    kept = [block.kept.num_bytes(dtype) for block in blocks]
    products = [block.products.num_bytes(dtype) for block in blocks]
    return Activations(
        around=count.around().num_bytes(dtype),
        blocks=sum(kept),
        largest_block=max(kept),
        largest_rest=max(all_of_it - some for all_of_it, some in zip(kept, products, strict=True)),
        inputs=sum(block.inputs.num_bytes(dtype) for block in blocks),
        products=sum(products),
    )


def weight_copies(config: BackboneConfig, dtype: torch.dtype) -> int:
    """Bytes of the weights' copies in `dtype` that autocast keeps until the backward pass."""
    if dtype == torch.float32:
        return 0
    with torch.device("meta"):
        model = build_backbone(config)
    matrices = (m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    return dtype.itemsize * sum(matrix.weight.numel() for matrix in matrices)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """All that one block keeps, and what enters it and its products give."""

    kept: Kept
    inputs: Kept
    products: Kept


class _Count:
    """The terms of one config and size: n image tokens, m text tokens, width d.

    With a `rank` all weights are frozen but those of a LoRA, which only an MM-DiT's attention has.
    A frozen product needs its weights alone, and so does a factor that is not trained; and nothing
    has a gradient before the first block's queries.
    """

    def __init__(
        self, config: BackboneConfig, size: InputSize, arithmetic: Arithmetic, rank: int | None
    ) -> None:
        self.config, self.size, self.at, self.rank = config, size, arithmetic, rank
        self.n = num_image_tokens(config, size)
        self.m, self.d = size.num_text, config.hidden_dim
        self.num_heads = self.d // config.head_dim

    def blocks(self) -> list[_Block]:
        config = self.config
        places = range(config.depth)
        match config:
            case MMDiTConfig():
                return [self.joint_block(config, place) for place in places]
            case DiTConfig():
                return [self.single_block(is_last=place == places[-1]) for place in places]
            case CrossDiTConfig() | UViTConfig():
                return [self.cross_block() for _ in places]

    def around(self) -> Kept:
        config = self.config
        match config:
            case MMDiTConfig() | DiTConfig():
                return self.embeddings() + self.ends()
            case CrossDiTConfig():
                return self.embeddings() + self.shared_text() + self.ends()
            case UViTConfig():
                return self.embeddings() + self.shared_text() + self.levels(config)

    def joint_block(self, config: MMDiTConfig, place: int) -> _Block:
        """An MM-DiT's; the text of the last one ends in its attention."""
        n, m, d, num_sets = self.n, self.m, self.d, len(config.text_streams)
        is_last = place == config.depth - 1
        is_reached = self.rank is None or place > 0
        kept = self.own_attention(n + m) + self.behind(n, is_wide=True)
        kept += self.front(n, is_wide=True, is_reached=is_reached)
        kept += self.front(m, is_wide=False, num_sets=num_sets, is_reached=is_reached)
        products = self.attended(n + m, n + m) + self.front_products(n) + self.behind_products(n)
        products += self.front_products(m, num_sets=num_sets, num_chunks=2 if is_last else 6)
        if not is_last:
            kept += self.behind(m, is_wide=False, num_sets=num_sets)
            products += self.behind_products(m)
        if place < config.num_second_attentions:
            kept += Kept(narrow=3 * d)
            if is_reached:
                # The norm of the same tokens once more, and what the second attention gives.
                kept += self.own_attention(n) + self.gated(n, is_wide=True)
                kept += self.norm(n, is_wide=True, shares_input=True)
            if self.rank is None:
                kept += Kept(narrow=n * d)
            products += self.attended(n, n) + self.front_products(n, num_chunks=3)
            products += Kept(narrow=n * d)
        inputs = Kept(narrow=m * d, wide=n * d)
        if self.rank is not None:
            # Of each part of the projections, how the update sees its input, and the update.
            updated = 4 * n + (3 if is_last else 4) * m
            products += Kept(narrow=updated * (self.rank + d))
            # The vector that all modulations read, which nothing else keeps.
            inputs += Kept(narrow=0 if is_reached else d)
        return _Block(kept=kept, inputs=inputs, products=products)

    def single_block(self, *, is_last: bool) -> _Block:
        """A DiT's; of the last one the text goes no further than its attention."""
        num = self.n + self.m
        num_out = self.n if is_last else num
        kept = self.own_attention(num) + self.front(num, is_wide=True)
        products = self.attended(num, num) + self.front_products(num)
        return _Block(
            kept=kept + self.behind(num_out, is_wide=True),
            inputs=Kept(wide=num * self.d),
            products=products + self.behind_products(num_out),
        )

    def embeddings(self) -> Kept:
        """Time, pooled text and context; the sum of the first two is read by every modulation."""
        if self.rank is not None:
            return Kept()
        config, d = self.config, self.d
        vectors = TIME_EMBEDDING_DIM + config.pooled_dim + 5 * d
        return Kept(narrow=vectors + self.m * config.context_dim)

    def ends(self) -> Kept:
        """Patches in, and the final layer."""
        config, n = self.config, self.n
        norm = self.norm(n, is_wide=True)
        if self.rank is not None:
            return norm
        patches = n * config.in_channels * config.patch_size**2
        return Kept(narrow=patches + self.d) + norm

    def stream(self, num: int, *, is_wide: bool, num_sets: int = 1) -> Kept:
        """A `StreamBlock` less its attention, or several that share `num` tokens."""
        return self.front(num, is_wide=is_wide, num_sets=num_sets) + self.behind(
            num, is_wide=is_wide, num_sets=num_sets
        )

    def front(self, num: int, *, is_wide: bool, num_sets: int = 1, is_reached: bool = True) -> Kept:
        """Before the attention: the norm, and for each set of weights what modulation reads.

        A LoRA reads the norm's result as a trained weight does; `is_reached` is False where no
        gradient goes on.
        """
        if self.rank is None:
            norm = self.norm(num, is_wide=is_wide, num_sets=num_sets)
            return norm + Kept(narrow=num_sets * self.d)
        norm = self.norm(num, is_wide=is_wide) if is_reached else Kept()
        return norm + Kept(narrow=num * self.d + 3 * self.rank * num)

    def behind(self, num: int, *, is_wide: bool, num_sets: int = 1) -> Kept:
        """After the attention: its output as the projection reads it, and all that follows."""
        d = self.d
        modulation = Kept(narrow=num_sets * 6 * d)
        hidden = Kept(narrow=(1 + 2 * MLP_RATIO) * num * d)
        if self.rank is not None:
            hidden = Kept(narrow=(1 + MLP_RATIO) * num * d + self.rank * num)
        gated = self.gated(num, is_wide=is_wide, num_sets=num_sets)
        return modulation + hidden + 2 * gated + self.norm(num, is_wide=is_wide, num_sets=num_sets)

    def norm(
        self, num: int, *, is_wide: bool, num_sets: int = 1, shares_input: bool = False
    ) -> Kept:
        """A modulated norm: input, mean and deviation, result, factor, and the product's input."""
        d = self.d
        if self.rank is not None:
            inside = self.normed((0 if shares_input else num * d) + 2 * num, is_wide=is_wide)
            return inside + Kept(narrow=num_sets * d)
        inside = self.normed((1 if shares_input else 2) * num * d + 2 * num, is_wide=is_wide)
        return inside + Kept(narrow=num * d + num_sets * d)

    def normed(self, count: int, *, is_wide: bool) -> Kept:
        """Numbers inside of a norm, whose input is float32 if `is_wide`."""
        return Kept(wide=count) if is_wide or self.at.is_cuda else Kept(narrow=count)

    def gated(self, num: int, *, is_wide: bool, num_sets: int = 1) -> Kept:
        """What comes through a gate into the stream; on CUDA widened first, with its gate."""
        branch = num * self.d if self.rank is None else 0
        if is_wide and self.at.is_cuda:
            return Kept(wide=branch + num_sets * self.d)
        return Kept(narrow=branch)

    def front_products(self, num: int, *, num_sets: int = 1, num_chunks: int = 6) -> Kept:
        """Modulations, and queries, keys and values."""
        return Kept(narrow=num_sets * num_chunks * self.d + 3 * num * self.d)

    def behind_products(self, num: int) -> Kept:
        """The attention's projection, and both of the feed-forward network."""
        return Kept(narrow=(2 + MLP_RATIO) * num * self.d)

    def own_attention(self, num: int) -> Kept:
        """Tokens among themselves: queries and keys are views of one projection."""
        return self.attention(num, num) + self.qk_norm(2 * num, projected=3 * num)

    def attention(self, num_queries: int, num_keys: int) -> Kept:
        """Queries, keys, values, and either the output with a sum for each row, or all weights."""
        inputs = Kept(narrow=(num_queries + 2 * num_keys) * self.d)
        if self.at.has_fused_attention:
            return inputs + self.attended(num_queries, num_keys)
        return inputs + Kept(narrow=self.num_heads * num_queries * num_keys)

    def attended(self, num_queries: int, num_keys: int) -> Kept:
        """What an attention's kernels give: the output, and a sum for each row or all logits."""
        output = Kept(narrow=num_queries * self.d)
        if self.at.has_fused_attention:
            return output + Kept(wide=num_queries * self.num_heads)
        return output + Kept(narrow=self.num_heads * num_queries * num_keys)

    def qk_norm(self, num: int, *, projected: int) -> Kept:
        """The norms of `num` queries and keys, which are views of `projected` times d numbers."""
        if not self.config.use_qk_norm:
            return Kept()
        d, deviations = self.d, Kept(wide=num * self.num_heads)
        if self.at.is_cuda:
            return deviations + Kept(narrow=projected * d)
        # On a CPU the norm is made of several operations, in float32; the last one's input is for
        # the norm's weights.
        normed = num if self.rank is None else 0
        if self.at.dtype == torch.float32:
            return deviations + Kept(narrow=(projected + normed) * d)
        return deviations + Kept(wide=(num + normed) * d)

    def cross_block(self) -> _Block:
        """A CrossDiT's or a UViT's."""
        n, m, d = self.n, self.m, self.d
        own = self.own_attention(n) + self.stream(n, is_wide=True)
        # The tokens that queries are made of; with all weights, also the output as it is projected.
        cross = self.attention(n, m) + Kept(narrow=n * d)
        if not self.at.has_fused_attention:
            cross += Kept(narrow=n * d)
        # Values are a view of the text's projection, which so is kept already.
        cross += self.qk_norm(n + m, projected=n + m)
        products = self.attended(n, n) + self.front_products(n) + self.behind_products(n)
        # Of the second attention: queries, keys, values and its own projection.
        products += self.attended(n, m) + Kept(narrow=2 * n * d + 2 * m * d)
        return _Block(kept=own + cross, inputs=Kept(wide=n * d), products=products)

    def shared_text(self) -> Kept:
        """The embedded text, which all blocks of a CrossDiT read."""
        return Kept(narrow=self.m * self.d)

    def levels(self, config: UViTConfig) -> Kept:
        """A UViT's convolutions on the way down and up, and its final layer."""
        d, channels = config.hidden_dim, config.level_channels
        places = self.size.height * self.size.width
        kept = Kept(narrow=places * config.in_channels)
        final = 2 * places * channels[0] + 2 * places
        kept += self.normed(final, is_wide=False)
        kept += Kept(narrow=places * channels[0] + channels[0] + d)
        for c, below in zip(channels, (*channels[1:], d)):
            for c_in in (c, 2 * c):
                kept += config.num_residual_blocks * self.residual_block(places, c_in, c)
            # What shrinking reads, and growing.
            kept += Kept(narrow=places * c + places // STRIDE**2 * below)
            places //= STRIDE**2
        return kept

    def residual_block(self, places: int, c_in: int, c: int) -> Kept:
        """A `ModulatedResidualBlock`: norm, SiLU and convolution twice, then the gate."""
        groups = (c_in + c) // CHANNELS_PER_GROUP
        # The first norm's result goes straight into SiLU, the second's is scaled before.
        norms = self.normed(places * (2 * c_in + 2 * c) + 2 * groups, is_wide=False)
        convolved = Kept(narrow=places * (c_in + 2 * c) + c)
        return norms + convolved + Kept(narrow=places * c + 3 * c + self.config.hidden_dim)
