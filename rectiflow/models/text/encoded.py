"""What the three text encoders say about prompts, and how SD3 joins it into one conditioning.

Both walks: the store keeps `EncodedText` rows, training and sampling assemble them. Nothing is
masked: padding positions are tokens like any other, as in the released models.
Source: arXiv 2403.03206, section 4 and appendix B.3; layout as in the released SD3.

**Dropping.** A dropped encoder contributes zeros in its slice: CLIP-L and CLIP-G their channels of
the first tokens and of the pooled vector, T5 its tokens. The null conditioning is the encoding of
the empty prompt where nothing is dropped, and zeros where an encoder is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.models.conditioning import Conditioning

ENCODERS = ("clip_l", "clip_g", "t5")


def choose_encoders(names: Sequence[str]) -> tuple[str, ...]:
    """The named encoders in their usual order.

    Raises:
        UserError: a name is not an encoder's.
    """
    for name in names:
        if name not in ENCODERS:
            raise UserError(f"unknown text encoder {name!r}; choose among {', '.join(ENCODERS)}")
    return tuple(name for name in ENCODERS if name in names)


@dataclass(frozen=True, kw_only=True)
class ClipStates:
    """A CLIP text tower's penultimate states without the final norm, and projected end token."""

    context: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b p"]


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A batch of prompts as the three encoders see them, before anything is joined or dropped."""

    clip_l: ClipStates
    clip_g: ClipStates
    t5: Float[Tensor, "b m e"]

    def __len__(self) -> int:
        return self.t5.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> EncodedText:
        return EncodedText.from_columns({k: v[rows] for k, v in self.columns().items()})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> EncodedText:
        return EncodedText.from_columns(
            {k: v.to(device=device, dtype=dtype) for k, v in self.columns().items()}
        )

    def expand(self, num: int) -> EncodedText:
        """Repeat a batch of one prompt `num` times, without copying.

        Raises:
            ValueError: the batch does not hold exactly one prompt.
        """
        if len(self) != 1:
            raise ValueError(f"only a batch of one prompt expands, this one has {len(self)}")
        return EncodedText.from_columns(
            {k: v.expand(num, *v.shape[1:]) for k, v in self.columns().items()}
        )

    @staticmethod
    def concat(parts: Sequence[EncodedText]) -> EncodedText:
        """Join batches along the batch dimension; lengths and widths must agree."""
        columns = [part.columns() for part in parts]
        return EncodedText.from_columns(
            {name: torch.cat([c[name] for c in columns]) for name in COLUMNS}
        )

    def columns(self) -> dict[str, Tensor]:
        """The five tensors by the names under which a store keeps them (`COLUMNS`)."""
        return {
            "clip_l.context": self.clip_l.context,
            "clip_l.pooled": self.clip_l.pooled,
            "clip_g.context": self.clip_g.context,
            "clip_g.pooled": self.clip_g.pooled,
            "t5.context": self.t5,
        }

    @staticmethod
    def from_columns(columns: Mapping[str, Tensor]) -> EncodedText:
        """The inverse of `columns`.

        Raises:
            ValueError: the names are not exactly `COLUMNS`.
        """
        if set(columns) != set(COLUMNS):
            raise ValueError(f"encoded text has the columns {COLUMNS}, got {tuple(columns)}")
        return EncodedText(
            clip_l=ClipStates(context=columns["clip_l.context"], pooled=columns["clip_l.pooled"]),
            clip_g=ClipStates(context=columns["clip_g.context"], pooled=columns["clip_g.pooled"]),
            t5=columns["t5.context"],
        )


COLUMNS = ("clip_l.context", "clip_l.pooled", "clip_g.context", "clip_g.pooled", "t5.context")


def assemble(
    encoded: EncodedText, keep: Mapping[str, Bool[Tensor, " b"]] | None = None
) -> Conditioning:
    """Join the three encoders as SD3 does.

    context = [ (clip_l ⊕ clip_g, zero-padded to T5's width) ; t5 ] along the sequence [b l+m e],
    pooled = clip_l ⊕ clip_g [b p], where ⊕ joins channels.

    Args:
        encoded: the prompts.
        keep: for an encoder, the rows that keep it; the others get zeros in its slice. An encoder
            that is not named keeps every row.

    Raises:
        ValueError: `keep` names an unknown encoder.
        ConfigError: the CLIP towers have different lengths, or together are wider than T5.
    """
    clip_l, clip_g, t5 = encoded.clip_l, encoded.clip_g, encoded.t5
    keep = {} if keep is None else keep
    for name in keep:
        if name not in ENCODERS:
            raise ValueError(f"unknown encoder {name!r} in keep; the encoders are {ENCODERS}")
    check_widths(clip_l.context.shape[1:], clip_g.context.shape[1:], t5.shape[1:])
    clip_context = torch.cat(
        [
            _zero_dropped(clip_l.context, keep.get("clip_l")),
            _zero_dropped(clip_g.context, keep.get("clip_g")),
        ],
        dim=-1,
    )
    clip_context = F.pad(clip_context, (0, t5.shape[-1] - clip_context.shape[-1]))
    return Conditioning(
        context=torch.cat([clip_context, _zero_dropped(t5, keep.get("t5"))], dim=1),
        pooled=torch.cat(
            [
                _zero_dropped(clip_l.pooled, keep.get("clip_l")),
                _zero_dropped(clip_g.pooled, keep.get("clip_g")),
            ],
            dim=-1,
        ),
    )


def check_widths(clip_l: Sequence[int], clip_g: Sequence[int], t5: Sequence[int]) -> None:
    """Whether three (length, width) pairs can be joined.

    Raises:
        ConfigError: the CLIP towers have different lengths, or together are wider than T5.
    """
    if clip_l[0] != clip_g[0]:
        raise ConfigError(
            f"clip_l gives {clip_l[0]} tokens and clip_g {clip_g[0]}; their channels are joined "
            "token by token, so choose the same length for both"
        )
    if clip_l[1] + clip_g[1] > t5[1]:
        raise ConfigError(
            f"clip_l ({clip_l[1]}) and clip_g ({clip_g[1]}) together are wider than t5 ({t5[1]}); "
            "their channels are joined and padded to T5's width, so choose a wider T5"
        )


def _zero_dropped(tensor: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return tensor
    # A choice, not a product: a NaN in a dropped slice must not survive.
    return torch.where(keep.view(-1, *[1] * (tensor.dim() - 1)), tensor, 0.0)
