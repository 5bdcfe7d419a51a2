"""MM-DiT: text and image tokens with weights of their own, joined in attention.

On both walks the backbone. Module and tensor names are those of the released SD3 files.
Source: arXiv 2403.03206, section 4 and figure 2; sizes as released (width = 64·depth).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.frame import BackboneSize, PatchTransformer
from rectiflow.models.layers.attention import joint_attention, repeat_last
from rectiflow.models.layers.blocks import StreamBlock
from rectiflow.models.layers.modulation import FinalLayer, Modulator


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig(BackboneSize):
    """Size of an MM-DiT with two sets of weights, or three.

    Two, as released: one for text tokens, one for image tokens. With `num_clip_tokens`, three: the
    first so many text tokens are CLIP's (77 in SD3) and the rest T5's, each with weights of their
    own in every block; all text still enters by one linear map. With one set it is
    `rectiflow.models.baselines.dit.DiT`.
    Source: arXiv 2403.03206, section 5.2.3 (two and three sets).
    """

    num_clip_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clip_tokens is not None and self.num_clip_tokens < 1:
            raise ConfigError(
                f"num_clip_tokens={self.num_clip_tokens} must be at least 1; leave it out for one "
                "set of weights for all text"
            )

    @property
    def title(self) -> str:
        return "MM-DiT" if self.num_clip_tokens is None else "MM-DiT with three sets of weights"

    @property
    def text_streams(self) -> tuple[str, ...]:
        """Names of the kinds of text token that have weights of their own."""
        return ("context",) if self.num_clip_tokens is None else ("clip", "t5")

    @property
    def num_second_attentions(self) -> int:
        """How many blocks, from the first on, give the image an attention of its own as well."""
        return 0


@dataclass(frozen=True, kw_only=True)
class MMDiTXConfig(MMDiTConfig):
    """Size of an MMDiT-X: an MM-DiT whose first `num_dual_blocks` blocks have a second attention.

    There image tokens also attend to each other alone, beside the joint attention.
    Source: the released SD3.5-medium, whose first 13 blocks of 24 are such.
    """

    num_dual_blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_dual_blocks <= self.depth:
            raise ConfigError(
                f"num_dual_blocks={self.num_dual_blocks} must be from 1 to depth={self.depth}; "
                "without such blocks it is an MMDiTConfig"
            )

    @property
    def title(self) -> str:
        return "MMDiT-X"

    @property
    def num_second_attentions(self) -> int:
        return self.num_dual_blocks


class JointBlock(nn.Module):
    """A block of weights for each stream around one joint attention; the image is the last stream.

    With `is_last`, the text only serves the attention, and the image alone comes back. With
    `is_dual`, the image has a second attention of its own.
    """

    def __init__(self, config: MMDiTConfig, *, is_last: bool, is_dual: bool = False) -> None:
        super().__init__()
        self.is_last = is_last

        def block(*, ends_here: bool = False, is_dual: bool = False) -> StreamBlock:
            return StreamBlock(
                config.hidden_dim,
                head_dim=config.head_dim,
                use_qk_norm=config.use_qk_norm,
                is_last=ends_here,
                is_dual=is_dual,
            )

        self._text_names = [f"{name}_block" for name in config.text_streams]
        for name in self._text_names:
            self.add_module(name, block(ends_here=is_last))
        self.x_block = block(is_dual=is_dual)

    @property
    def stream_blocks(self) -> list[StreamBlock]:
        """The blocks in the order of the streams."""
        return [*(getattr(self, name) for name in self._text_names), self.x_block]

    def forward(
        self,
        streams: Sequence[Float[Tensor, "b _ d"]],
        vector: Modulator,
        *,
        last_count: int = 1,
    ) -> tuple[Float[Tensor, "b _ d"], ...]:
        """Each stream's tokens; the last text token is looked at as `last_count` equal ones."""
        blocks = self.stream_blocks
        modulations = [block.adaLN_modulation.chunks(vector) for block in blocks]
        projections = [
            block.project(x, shift, scale)
            for block, x, (shift, scale, *_) in zip(blocks, streams, modulations, strict=True)
        ]
        q, k, v = projections[-2]
        projections[-2] = q, repeat_last(k, last_count), repeat_last(v, last_count)
        attended = joint_attention(projections)
        first = len(blocks) - 1 if self.is_last else 0
        return tuple(
            block.finish(x, a, modulation)
            for block, x, a, modulation in zip(
                blocks[first:], streams[first:], attended[first:], modulations[first:], strict=True
            )
        )


class MMDiT(PatchTransformer):
    """(z_t [b c h w], t [b], conditioning) → the network's output, shaped as z_t.

    Raises:
        ValueError: the latents' sides are not multiples of the patch size, or larger than the
            position grid; or no text tokens are left beside CLIP's.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config)
        self._num_clip_tokens = config.num_clip_tokens
        self.joint_blocks = nn.ModuleList(
            JointBlock(
                config, is_last=i == config.depth - 1, is_dual=i < config.num_second_attentions
            )
            for i in range(config.depth)
        )
        self.final_layer = FinalLayer(config.hidden_dim, config.patch_features)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.joint_blocks

    def transform(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b l d"],
        vector: Modulator,
        *,
        last_count: int,
    ) -> Float[Tensor, "b n d"]:
        streams: tuple[Tensor, ...] = (*self._text_streams(context), x)
        for block in self.joint_blocks:
            streams = block(streams, vector, last_count=last_count)
        return streams[-1]

    def _text_streams(self, context: Tensor) -> Sequence[Tensor]:
        num_clip, num_text = self._num_clip_tokens, context.shape[1]
        if num_clip is None:
            return [context]
        if num_clip >= num_text:
            raise ValueError(
                f"the context has {num_text} tokens, num_clip_tokens={num_clip} leaves none for "
                "T5; set it to the length of CLIP's part"
            )
        return context.split([num_clip, num_text - num_clip], dim=1)
