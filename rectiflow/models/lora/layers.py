"""Low-rank updates beside frozen weights, to be trained: linear maps that carry a LoRA.

On the walk of a sample inside the backbone of a run that trains a LoRA. A layer keeps the names and
the very parameters of the one whose place it takes. Source: arXiv 2106.09685, section 4.1
(W' = W + up · down, down random, up zero, so that training starts at the model as it is).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.frame import Backbone, BackboneSize
from rectiflow.models.layers.linear import Linear, StackedLinear, multiply
from rectiflow.models.lora.homes import WEIGHT, mmdit_matrices
from rectiflow.models.lora.low_rank import Lora, LowRank
from rectiflow.models.mmdit import MMDiTConfig

_DOWN, _UP = ".lora_down", ".lora_up"
#: What diffusers' SD3 scripts train unless told otherwise: queries, keys, values and output of the
#: joint attention, of text and image. The second attention of SD3.5-medium stays as it is.
_TARGETS = re.compile(r"joint_blocks\.\d+\.(context|x)_block\.attn\.(qkv|proj)\.weight")


class LoraLinear(StackedLinear):
    """A linear map with frozen weights, and a trained update of rank `rank` for each of its parts.

    Queries, keys and values have an update each, as they are matrices of their own to other tools.
    `lora_down` is [parts·rank, i], `lora_up` [parts·part_dim, rank]; alpha is the rank, so that the
    update is up · down. Both are float32 whatever type the weights are held in.
    """

    def __init__(self, frozen: Linear, rank: int, generator: torch.Generator) -> None:
        num_parts = frozen.num_parts if isinstance(frozen, StackedLinear) else 1
        with torch.device("meta"):  # the weights are the frozen layer's own
            super().__init__(
                frozen.in_features, frozen.out_features // num_parts, num_parts=num_parts
            )
        self.weight, self.bias = frozen.weight, frozen.bias
        self.rank = rank
        # As diffusers' scripts draw it ("gaussian" in PEFT's words): std = 1/rank.
        down = torch.randn(num_parts * rank, frozen.in_features, generator=generator) / rank
        self.lora_down = nn.Parameter(down)
        self.lora_up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        inner = multiply(input, self.lora_down, None).unflatten(-1, (self.num_parts, self.rank))
        up = self.lora_up.unflatten(0, (self.num_parts, -1)).to(inner.dtype)
        update = torch.einsum("...pr,por->...po", inner, up).flatten(-2)
        return super().forward(input) + update


def check_lora(config: BackboneSize, rank: int) -> list[str]:
    """The names of the weights that a LoRA of this rank changes in a model of this size.

    Raises:
        ConfigError: the model is no MM-DiT, or the rank is below 1 or larger than a matrix.
        CheckpointError: it is an MM-DiT that has no released layout.
    """
    if not isinstance(config, MMDiTConfig):
        raise ConfigError(
            f"the model is a {config.title}; LoRAs are trained for MM-DiTs alone, so train all of "
            "its weights instead"
        )
    matrices = {n: m for n, m in mmdit_matrices(config).items() if _TARGETS.fullmatch(n)}
    largest = min(
        min(m.num_rows // len(m.entry.diffusers), m.num_columns) for m in matrices.values()
    )
    if not 1 <= rank <= largest:
        raise ConfigError(
            f"a LoRA of rank {rank} cannot be: the model's attention has matrices of side "
            f"{largest}, so give a rank from 1 to {largest}; 4 to 64 is usual"
        )
    return list(matrices)


def add_lora(backbone: Backbone, rank: int, generator: torch.Generator) -> None:
    """Freeze a backbone and put trained updates beside its attention's weights, in place.

    The backbone computes what it did before, bit for bit, until the updates are trained.

    Raises:
        ConfigError, CheckpointError: as `check_lora`.
    """
    names = check_lora(backbone.config, rank)
    backbone.requires_grad_(False)
    for name in names:
        path = name.removesuffix(WEIGHT)
        frozen = backbone.get_submodule(path)
        assert isinstance(frozen, Linear)
        backbone.set_submodule(path, LoraLinear(frozen, rank, generator))


def lora_layers(backbone: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that carry an update, by name; none where nothing does."""
    for name, module in backbone.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def lora_rank(backbone: nn.Module) -> int | None:
    """The rank of the updates that `add_lora` put in; None where there are none."""
    return next((layer.rank for _, layer in lora_layers(backbone)), None)


def lora_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    """The updates' live tensors by name: all that a run which trains a LoRA has to keep."""
    return {
        name + leaf: parameter.detach()
        for name, layer in lora_layers(backbone)
        for leaf, parameter in ((_DOWN, layer.lora_down), (_UP, layer.lora_up))
    }


def lora_of(config: MMDiTConfig, tensors: Mapping[str, Tensor]) -> Lora:
    """The updates that `lora_tensors` gave, of a model of this size, as a LoRA to merge or to save.

    Raises:
        ConfigError: there are none, or one is not finite.
    """
    names = [name.removesuffix(_UP) for name in tensors if name.endswith(_UP)]
    updates = {f"{n}{WEIGHT}": _pairs(tensors[n + _DOWN], tensors[n + _UP]) for n in names}
    return Lora(config=config, parts={"mmdit": updates})


def _pairs(down: Tensor, up: Tensor) -> tuple[LowRank, ...]:
    """A layer's updates part by part, copied."""
    rank = up.shape[1]
    num_parts = len(down) // rank
    return tuple(
        LowRank(
            down=part_down.detach().clone(),
            up=part_up.detach().clone(),
            alpha=float(rank),
            first_row=i * len(part_up),
        )
        for i, (part_down, part_up) in enumerate(
            zip(down.chunk(num_parts), up.chunk(num_parts), strict=True)
        )
    )
