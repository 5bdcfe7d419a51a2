"""What a backbone's attention does on a batch: its largest logit and its entropy, block by block.

Growing logits and falling entropy are how training in half precision comes to diverge, and what
QK-normalisation is against. Backbones do not know that they are watched.
Source: arXiv 2403.03206, section 5.3.2 and figure 5.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.frame import Backbone
from rectiflow.models.layers.attention import watch_attention


@dataclass(kw_only=True)
class AttentionSeen:
    """One attention over all batches, samples, heads and queries so far.

    `max_logit` is the largest |q·k/√d|, before the softmax; `entropy` the mean of −Σ p·ln p in
    nats, from 0 (one token is looked at) to ln of the number of keys (all alike).
    """

    max_logit: float = 0.0
    num_distributions: int = 0
    sum_of_entropies: float = field(default=0.0, repr=False)

    @property
    def entropy(self) -> float:
        return self.sum_of_entropies / max(1, self.num_distributions)

    def add(self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"]) -> None:
        """Take in one call of attention."""
        scale = q.shape[-1] ** -0.5
        # Sample by sample: all logits of a batch at once can be larger than the model.
        for queries, keys in zip(q.detach().float(), k.detach().float(), strict=True):
            logits = scale * (queries @ keys.mT)
            self.max_logit = max(self.max_logit, logits.abs().max().item())
            entropies = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
            self.sum_of_entropies += entropies.double().sum().item()
            self.num_distributions += entropies.numel()


@dataclass(kw_only=True)
class BlockSeen:
    """The attentions of one block, in the order of their calls: a CrossDiT's look at the text is
    its second.
    """

    attentions: list[AttentionSeen] = field(default_factory=list)

    @property
    def max_logit(self) -> float:
        """The largest of all of the block's attentions."""
        return max((seen.max_logit for seen in self.attentions), default=0.0)

    @property
    def entropy(self) -> float:
        """The mean over the queries of all of the block's attentions, in nats."""
        total = sum(seen.sum_of_entropies for seen in self.attentions)
        return total / max(1, sum(seen.num_distributions for seen in self.attentions))


@contextmanager
def observe_attention(backbone: Backbone) -> Generator[list[BlockSeen]]:
    """Watch the attention of every forward pass within; yields one `BlockSeen` for each block.

    Each call computes its logits a second time, so that what is watched runs as it always does.
    Compiled graphs do not see it: watch the plain module.
    """
    blocks = [BlockSeen() for _ in backbone.blocks]
    current: tuple[BlockSeen, int] | None = None

    def entering(block: BlockSeen) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, arguments: object) -> None:
            nonlocal current
            current = (block, 0)

        return hook

    def leaving(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal current
        current = None

    def look(q: Tensor, k: Tensor) -> None:
        nonlocal current
        if current is None:
            return
        block, place = current
        if place == len(block.attentions):
            block.attentions.append(AttentionSeen())
        block.attentions[place].add(q, k)
        current = (block, place + 1)

    with ExitStack() as stack:
        for block, module in zip(blocks, backbone.blocks, strict=True):
            stack.callback(module.register_forward_pre_hook(entering(block)).remove)
            stack.callback(module.register_forward_hook(leaving).remove)
        stack.enter_context(watch_attention(look))
        yield blocks
