"""A model cut among processes by PyTorch's FSDP2, and tensors as parts or as a whole.

On the walk of a sample: the training state is cut once, before the first step; optimizer, average
and checkpoints work on each process's own parts. A tensor that was never cut passes through all
functions as it is.
Source: PyTorch FSDP2, `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh


def shard(model: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Cut the weights of `model`, in place, along the mesh; they meet block by block when used.

    Weights, gradients and their sums over processes stay float32. Within a block of `model.blocks`
    weights are gathered in `compute_dtype`, which autocast would turn them into anyway, and
    activations are left alone: so the model computes what it does uncut.
    """
    # Here and below: slow to import, and a process alone does without.
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    def policy(dtype: torch.dtype) -> MixedPrecisionPolicy:
        return MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )

    blocks = model.blocks
    assert isinstance(blocks, nn.ModuleList)
    # Parts again after each use, so that between steps a model consists of parts alone.
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy(compute_dtype), reshard_after_forward=True)
    # What is around the blocks is small, and its weights' type says which one the input is cast to.
    fully_shard(model, mesh=mesh, mp_policy=policy(torch.float32), reshard_after_forward=True)


@torch.no_grad()
def fill(model: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Give parameters their values, by name; of a cut one a process keeps its own part.

    One value is in memory at a time, if `values` makes them so.
    """
    parameters = dict(model.named_parameters())
    for name, value in values:
        own_part(parameters[name]).copy_(part_for(value, parameters[name]))


def hold_as(model: nn.Module, other: nn.Module) -> None:
    """Give a cut model without memory what `other`, of the same modules and cut alike, holds.

    What `other` does not train is the very same tensor in both; the rest is copied.
    """
    for module, theirs in zip(model.modules(), other.modules(), strict=True):
        for name, parameter in theirs.named_parameters(recurse=False):
            held = parameter.detach()
            held = held.clone() if parameter.requires_grad else held
            module.register_parameter(name, nn.Parameter(held, requires_grad=False))
    # FSDP looks for its parameters anew.
    model._apply(lambda tensor: tensor)  # pyright: ignore[reportPrivateUsage]


def is_cut(tensor: Tensor) -> bool:
    """Whether it is spread over processes."""
    # Not isinstance of DTensor, whose import takes seconds that a process alone does not need.
    return hasattr(tensor, "to_local")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """This process's part, in place: what is written to it is written to the tensor."""
    cut: Any = tensor
    return cut.to_local() if is_cut(tensor) else tensor


def own_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """`own_part` of each."""
    return [own_part(tensor) for tensor in tensors]


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor in every process; each must call it."""
    cut: Any = tensor
    return cut.full_tensor() if is_cut(tensor) else tensor


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of a tensor of `shape`, from row `start` on; the whole of one that was never cut."""

    values: Tensor
    start: int
    shape: torch.Size

    @property
    def is_whole(self) -> bool:
        return self.values.shape == self.shape


def piece_of(tensor: Tensor) -> Piece:
    """`own_part`, and where in the whole it belongs."""
    values = own_part(tensor)
    if not is_cut(tensor):
        return Piece(values=values, start=0, shape=tensor.shape)
    cut: Any = tensor
    (axis,) = (i for i, placement in enumerate(cut.placements) if placement.is_shard(dim=0))
    # As torch.chunk cuts: the first parts are of one size, the last may be smaller, or empty.
    size = -(-len(tensor) // cut.device_mesh.size(axis))
    start = min(cut.device_mesh.get_local_rank(axis) * size, len(tensor))
    return Piece(values=values, start=start, shape=tensor.shape)


def part_for(full: Tensor, like: Tensor) -> Tensor:
    """The part of `full` that belongs where `own_part(like)` is, without asking others."""
    piece = piece_of(like)
    return full if piece.is_whole else full[piece.start : piece.start + len(piece.values)]


@torch.no_grad()
def share_work(compute: Callable[[Tensor], Tensor], rows: Tensor, *, like: Tensor) -> Tensor:
    """`compute(rows)`, shaped as `rows` and a function of each row alone.

    Where `like` is cut, all processes hold the same rows, each computes some, and all get all.
    """
    if not is_cut(like):
        return compute(rows)
    num_processes, num_rows = dist.get_world_size(), len(rows)
    padding = rows.new_zeros(-num_rows % num_processes, *rows.shape[1:])
    mine = torch.cat([rows, padding]).chunk(num_processes)[dist.get_rank()]
    together = rows.new_empty(num_rows + len(padding), *rows.shape[1:])
    dist.all_gather(list(together.chunk(num_processes)), compute(mine).contiguous())
    return together[:num_rows]
