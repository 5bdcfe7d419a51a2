"""What goes on inside the blocks in one training step: attention, gradients, updates.

On the walk of a sample around `step`, on the steps that the recipe asks for. It reads and never
writes, so that a diagnosed run has the same weights as any other, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from rectiflow.distributed.sharding import whole
from rectiflow.distributed.world import ALONE, World
from rectiflow.models.attention_probe import BlockSeen, observe_attention
from rectiflow.models.frame import Backbone
from rectiflow.models.substitution import is_compiled


@dataclass(frozen=True, kw_only=True)
class BlockDiagnosis:
    """One part of the backbone in one step.

    `gradient_norm` is that of all of its parameters before clipping. `update_ratio` is
    |new weights − old weights| / |old weights|, the root sums of squares over all of its
    parameters; about 1e-3 is usual at the height of a schedule. `largest_logit` and `entropy` are
    the attention's, as in `models.attention_probe`; None for what is around the blocks.
    """

    gradient_norm: float
    update_ratio: float
    largest_logit: float | None = None
    entropy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All blocks from the first to the last, and the embedders and final layer around them."""

    blocks: tuple[BlockDiagnosis, ...]
    around: BlockDiagnosis


class Diagnose:
    """A context around one training step; `before_update` is to be called when gradients are there.

    Every process of `world` opens and reads it. Of the attention each sees its own rows of the
    batch; what is told is the largest logit, and the mean entropy, of all.
    It holds a copy of the weights while the step lasts. Compiled blocks are left alone: they have
    no logits here.
    """

    def __init__(self, backbone: Backbone, world: World = ALONE) -> None:
        parts: list[nn.Module] = list(backbone.blocks)
        inside = {id(p) for part in parts for p in part.parameters()}
        self._backbone, self._world = backbone, world
        self._parts = [list(part.parameters()) for part in parts]
        self._parts.append([p for p in backbone.parameters() if id(p) not in inside])
        self._gradient_norms: list[float] = []
        self._before: list[list[Tensor]] = []
        self._seen: list[BlockSeen] = []
        self._stack = ExitStack()

    def __enter__(self) -> Diagnose:
        # Watched, a compiled block would be compiled anew, into a graph that rounds otherwise.
        if is_compiled(self._backbone):
            self._seen = [BlockSeen() for _ in self._backbone.blocks]
        else:
            self._seen = self._stack.enter_context(observe_attention(self._backbone))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @torch.no_grad()
    def before_update(self) -> None:
        """Note the gradients, and the weights that they will change."""
        self._gradient_norms = [
            _norm(p.grad for p in part if p.grad is not None) for part in self._parts
        ]
        self._before = [[p.detach().clone() for p in part] for part in self._parts]

    @torch.no_grad()
    def read(self) -> Diagnosis:
        """What was seen, after the step."""
        ratios = [
            _norm(new - old for new, old in zip(part, before, strict=True))
            / max(_norm(before), 1e-30)
            for part, before in zip(self._parts, self._before, strict=True)
        ]
        self._before = []
        found = [
            BlockDiagnosis(
                gradient_norm=gradient_norm,
                update_ratio=ratio,
                largest_logit=largest_logit,
                entropy=entropy,
            )
            for gradient_norm, ratio, (largest_logit, entropy) in zip(
                self._gradient_norms, ratios, [*self._attentions(), (None, None)], strict=True
            )
        ]
        return Diagnosis(blocks=tuple(found[:-1]), around=found[-1])

    def _attentions(self) -> list[tuple[float | None, float | None]]:
        """Largest logit and mean entropy of each block, None where nothing was seen."""
        logits = self._world.gather(*(seen.max_logit for seen in self._seen)).amax(dim=0).tolist()
        # Each process has an equal share of the batch, so that their means weigh the same.
        entropies = self._world.gather(*(seen.entropy for seen in self._seen)).mean(dim=0).tolist()
        return [
            (logit, entropy) if seen.attentions else (None, None)
            for seen, logit, entropy in zip(self._seen, logits, entropies, strict=True)
        ]


def _norm(tensors: Iterable[Tensor]) -> float:
    """The root sum of squares over all of them."""
    squares = [whole(tensor.float().square().sum()) for tensor in tensors]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0
