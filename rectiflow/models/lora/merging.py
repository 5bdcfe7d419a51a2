"""Merges LoRAs into a model's weights, and takes them out again without a trace.

Merged weights cost nothing more per step than plain ones. What it costs is memory: the originals
of the matrices that change are kept until `unmerge`, at most the model's size once more. Originals
that are mapped from a file stay there and take none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.lora.low_rank import Lora

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class Replaced:
    """One parameter's values before a merge and after it."""

    name: str
    parameter: nn.Parameter
    before: Tensor
    after: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Originals:
    """What `merge` replaced, for `unmerge`."""

    replaced: tuple[Replaced, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the originals; memory that is taken unless they are mapped from a file."""
        return sum(one.before.nbytes for one in self.replaced)


@torch.no_grad()
def merge(
    model: nn.Module,
    stack: Sequence[tuple[Lora, float]],
    *,
    encoders: nn.ModuleDict | None = None,
) -> Originals:
    """Add Σ weight · alpha/rank · up · down to the weights; all of them or, after an error, none.

    Computed in float32 and rounded once to the weight's own type. Every changed parameter gets new
    memory, so that weights mapped from a file are never written to.

    Args:
        model: the MM-DiT, with our names.
        stack: LoRAs, each with its weight; 1 is as trained, 0 leaves it out, negative is allowed.
        encoders: a conditioner's `encoders`, for LoRAs that change text encoders too.

    Raises:
        UserError: a weight is not finite, a text encoder is not at hand, or a sum is too large for
            the weights' type.
        CheckpointError: a LoRA is for another model.
    """
    updates: dict[tuple[str, str], list[tuple[Lora, float]]] = {}
    for lora, weight in stack:
        if not math.isfinite(weight):
            raise UserError(f"the weight of a LoRA is {weight}; give a finite number, 1 as trained")
        if weight:
            for part, name, _ in lora.updates():
                updates.setdefault((part, name), []).append((lora, weight))
    networks = _networks(model, encoders, {part for part, _ in updates})
    parameters = {part: dict(network.named_parameters()) for part, network in networks.items()}
    replaced = [
        _added(part, name, parameters[part].get(name), of_one)
        for (part, name), of_one in updates.items()
    ]
    for one in replaced:
        one.parameter.data = one.after
    return Originals(replaced=tuple(replaced))


def unmerge(originals: Originals) -> None:
    """Put the originals back, the very bits and memory that were there before.

    Raises:
        UserError: the weights are not those that the merge left: something was merged after it, or
            they were moved, or are unmerged already.
    """
    for one in originals.replaced:
        if one.parameter.data_ptr() != one.after.data_ptr():
            raise UserError(
                f"{one.name} is not what the merge left; unmerge in the reverse order, once each, "
                "on the device of the merge"
            )
    for one in originals.replaced:
        one.parameter.data = one.before


@contextmanager
def merged(
    model: nn.Module,
    stack: Sequence[tuple[Lora, float]],
    *,
    encoders: nn.ModuleDict | None = None,
) -> Generator[Originals]:
    """`merge` for as long as a `with` lasts; `unmerge` after it, also after an error.

    Raises:
        UserError, CheckpointError: as `merge` and `unmerge`.
    """
    originals = merge(model, stack, encoders=encoders)
    try:
        yield originals
    finally:
        unmerge(originals)


def sharing_copy(network: Network) -> Network:
    """A copy with parameters of its own in the same memory, for merging beside the original.

    What is merged into the copy the original never sees, so that it may be in use meanwhile; only
    the matrices that change take memory.
    """
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in network.parameters()
    }
    memo |= {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def _networks(
    model: nn.Module, encoders: nn.ModuleDict | None, parts: set[str]
) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {"mmdit": model}
    for part in sorted(parts - {"mmdit"}):
        if encoders is None or part not in encoders:
            raise UserError(
                f"a LoRA changes the text encoder {part}, which is not at hand; give encoders=, a "
                "conditioner's, or leave it out with lora.only('mmdit')"
            )
        networks[part] = encoders[part]
    return networks


def _added(
    part: str,
    name: str,
    parameter: nn.Parameter | None,
    stack: Sequence[tuple[Lora, float]],
) -> Replaced:
    title = name if part == "mmdit" else f"{part}.{name}"
    if parameter is None:
        raise CheckpointError(
            f"a LoRA changes {title}, which this model lacks; read it with the config of this model"
        )
    before = parameter.data
    # A convolution as the matrix that it is on patches.
    total = before.to(torch.float32, copy=True, memory_format=torch.contiguous_format).flatten(1)
    for lora, weight in stack:
        shape = lora.matrix_shape(part, name)
        if shape != tuple(total.shape):
            raise CheckpointError(
                f"a LoRA changes {title} as a matrix of {list(shape)}, in this model it is "
                f"{list(total.shape)}; read it with the config of this model"
            )
        for pair in lora.parts[part][name]:
            up, down = pair.up.to(total.device), pair.down.to(total.device)
            rows = total[pair.first_row : pair.rows.stop]
            rows.addmm_(up, down, alpha=weight * pair.scale)
    after = total.reshape(before.shape).to(before.dtype)
    # A sum that is too large becomes infinite, or NaN in 8 bits, when it is rounded.
    if total.isfinite().all() and not after.to(torch.float32).isfinite().all():
        raise UserError(
            f"{title} with its LoRAs is too large for {before.dtype}; lower their weights, or load "
            "the model in float32"
        )
    return Replaced(name=title, parameter=parameter, before=before, after=after)
