"""The processes of one run: started by torchrun, or this one alone.

Above the walk of a sample: the command line opens the world, the training loop asks it who writes,
and what all processes agree on. Alone there is no process group and nothing is exchanged.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.distributed.lifeline import Lifeline

T = TypeVar("T")

# Dead processes are noticed at once by the lifeline. This is how long the others wait while the
# first one writes a checkpoint or draws pictures.
PATIENCE = timedelta(hours=1)
CPU = torch.device("cpu")
SHARD_AXIS = "shard"
COPY_AXIS = "copy"


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the `num_processes` of a run; by default there is no other.

    `mesh` is how the processes share a model (`sharding.shard`), None for one alone.
    """

    rank: int = 0
    num_processes: int = 1
    device: torch.device = CPU
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    @property
    def num_parts(self) -> int:
        """Into how many parts the model's state is cut."""
        return 1 if self.mesh is None else self.mesh[SHARD_AXIS].size()

    @property
    def part(self) -> int:
        """The part that this process holds, counted from 0."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(SHARD_AXIS)

    @property
    def has_first_copy(self) -> bool:
        """Whether no process of a lower rank holds the same part."""
        return self.rank == self.part

    def gather(self, *numbers: float) -> Float64[Tensor, "n k"]:
        """The numbers that each process gives, a row a process: the same for all, bit for bit.

        Every process must call it, as with the methods below.
        """
        mine = torch.tensor([numbers], dtype=torch.float64)
        if self.num_processes == 1:
            return mine
        rows = [torch.empty_like(mine) for _ in range(self.num_processes)]
        dist.all_gather(rows, mine)
        return torch.cat(rows)

    def from_first(self, make: Callable[[], T], *, patience: timedelta = PATIENCE) -> T:
        """What `make()` returns in the first process; the others wait for it, up to `patience`.

        The value travels pickled, among the processes of one run.
        """
        if self.num_processes == 1:
            return make()
        # How long its members wait for each other is a group's own.
        group = None
        if patience != PATIENCE:
            group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=patience))
        made: list[Any] = [make() if self.is_first else None]
        dist.broadcast_object_list(made, src=0, group=group, device=CPU)
        return cast(T, made[0])

    def wait_for_all(self) -> None:
        """Returns once every process has come here."""
        self.gather(0.0)


ALONE = World()


@contextmanager
def open_world(*, shard_over: int | None = None) -> Generator[World]:
    """The processes that torchrun started together, or this one alone.

    The model's state is cut into `shard_over` parts, by default one for each process; with fewer,
    the other processes hold further copies of the same parts (HSDP). Each process that torchrun
    started takes a GPU of its own where there are any. An error in any process ends all of them
    with one line by the first.

    Raises:
        UserError: torchrun's environment is incomplete.
        ConfigError: `shard_over` does not divide the processes, or there are fewer GPUs than
            processes.
    """
    num_processes = _from_environment("WORLD_SIZE", 1)
    if num_processes == 1:
        _num_copies(1, shard_over)
        if "WORLD_SIZE" in os.environ:
            yield World(device=device_of(0, 1))
            return
        if torch.cuda.is_available():
            print(
                "rectiflow: computing on the CPU; to train on a GPU: torchrun --nproc-per-node 1 "
                "-m rectiflow …",
                file=sys.stderr,
            )
        yield ALONE
        return
    rank = _from_environment("RANK")
    local_rank = _from_environment("LOCAL_RANK", rank)
    device = device_of(local_rank, _from_environment("LOCAL_WORLD_SIZE", num_processes))
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    with Lifeline.tie(rank, num_processes).holding():
        num_copies = _num_copies(num_processes, shard_over)
        mesh = mesh_of(device, num_copies=num_copies, num_parts=num_processes // num_copies)
        world = World(rank=rank, num_processes=num_processes, device=device, mesh=mesh)
        yield world
        # Whoever is done first must not look dead to the others.
        world.wait_for_all()
    dist.destroy_process_group()


def device_of(local_rank: int, num_local: int) -> torch.device:
    """The GPU of one of `num_local` processes on this machine, or the CPU where there are none.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return CPU
    num_gpus = torch.cuda.device_count()
    if num_local > num_gpus:
        raise ConfigError(
            f"{num_local} processes on a machine with {num_gpus} GPUs; start at most one for each "
            'GPU (--nproc-per-node), or set CUDA_VISIBLE_DEVICES="" to train on the CPU'
        )
    return torch.device("cuda", local_rank)


def _num_copies(num_processes: int, shard_over: int | None) -> int:
    parts = num_processes if shard_over is None else shard_over
    if parts < 1 or num_processes % parts:
        raise ConfigError(
            f"--shard-over {parts} does not divide the {num_processes} processes; give the number "
            "of processes that share one copy of the state, such as those of one machine"
        )
    return num_processes // parts


def mesh_of(device: torch.device, *, num_copies: int, num_parts: int) -> DeviceMesh:
    """The processes as `num_copies` rows of `num_parts`; neighbours share a copy."""
    if num_copies == 1:
        return init_device_mesh(device.type, (num_parts,), mesh_dim_names=(SHARD_AXIS,))
    return init_device_mesh(
        device.type, (num_copies, num_parts), mesh_dim_names=(COPY_AXIS, SHARD_AXIS)
    )


def _from_environment(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise UserError(
            f"the environment variable {name} is {text!r} though WORLD_SIZE is set; start several "
            "processes with torchrun --nproc-per-node N -m rectiflow train …"
        )
    return int(text)
