"""What happens to runs of one, two and four processes, measured; prints it as JSON.

A program of its own: it loads torch once and forks every process. Usage: scenarios.py FOLDER
"""

import copy
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # what sharding imports, once for all processes
import torch.distributed.fsdp
import torch.utils.tensorboard
from distributed.processes import Group, start_together
from numpy.typing import NDArray
from torch import nn
from training.fake_feed import FEATURE_DIM, FakeFeed, tiny_recipe
from training.kill_and_resume import contents

from rectiflow.base.errors import StoreError, UserError
from rectiflow.base.log import read_events
from rectiflow.cli.main import main as command_line
from rectiflow.distributed.sharding import own_part
from rectiflow.distributed.world import World, mesh_of, open_world
from rectiflow.models import precision
from rectiflow.models.backbones import build_backbone
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published.stored import StoredTensor
from rectiflow.training import loop, tensor_files
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.checkpoint import read_header
from rectiflow.training.ema import EmaConfig
from rectiflow.training.failure import replay
from rectiflow.training.fine_tuning import LoraTraining
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.routing import TokenRouting
from rectiflow.training.spikes import SpikeGuard
from rectiflow.training.start_from import FirstWeights
from rectiflow.training.state import TrainState
from rectiflow.training.step import StepResult, train_step
from rectiflow.training.tensor_files import SavedTensors, read_tensors, write_tensors
from rectiflow.training.validation import held_out_losses

# Sizes that four processes do not divide.
BACKBONE = MMDiTConfig(
    depth=2,
    width=36,
    head_dim=18,
    use_qk_norm=True,
    context_dim=32,
    pooled_dim=24,
    position_side=8,
    base_side=4,
)
LARGE = dataclasses.replace(BACKBONE, width=768, head_dim=64)


def small_recipe(**changes: Any) -> TrainRecipe:
    settings = {"precision": "fp32", "backbone": BACKBONE, "log_every": 1, "checkpoint_every": 3}
    return tiny_recipe(**(settings | changes))


MUON = small_recipe(max_steps=9, validate_every=9, diagnose_every=9)
POWER_EMA = EmaConfig(sigma_rels=(0.1,), snapshot_every=50)
ADAMW = small_recipe(
    optimizer=AdamW(), max_steps=4, checkpoint_every=0, validate_every=0, ema=POWER_EMA
)
BF16 = dataclasses.replace(MUON, max_steps=3, validate_every=0, diagnose_every=0, precision="bf16")
FASTER = dataclasses.replace(
    ADAMW,
    alignment=RepresentationAlignment(weight=0.5, feature_dim=FEATURE_DIM, projector_dim=10),
    contrast=0.2,
    routing=TokenRouting(share=0.5),
    log_every=1,
)
LORA = dataclasses.replace(
    ADAMW,
    ema=EmaConfig(),
    optimizer=AdamW(learning_rate=1e-2),
    lora=LoraTraining(rank=2),
    start_from="set by lora_of",
    sample_every=4,
    sample_prompts=("a",),
)
#: Goes back to the start at the second batch, which is no numbers.
SPIKY = dataclasses.replace(ADAMW, spikes=SpikeGuard(threshold=30.0), checkpoint_every=4)
POISONED = 2
LONG = dataclasses.replace(ADAMW, max_steps=50, sample_every=50, sample_prompts=("a", "b"))


@contextmanager
def acting_in(step: int, act: Callable[[], None]) -> Generator[None]:
    """Do something at the beginning of one step of this process."""

    def acting(state: TrainState, *rest: Any, **options: Any) -> StepResult:
        if state.step == step - 1:
            act()
        return train_step(state, *rest, **options)

    loop.train_step = acting
    try:
        yield
    finally:
        loop.train_step = train_step


def tell_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def tell_stop_twice() -> None:
    """As a cluster and torchrun do."""
    tell_stop()
    tell_stop()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def go(
    recipe: TrainRecipe, run: Path, world: World, feed: FakeFeed | None = None, **options: Any
) -> TrainResult:
    return train(recipe, feed or FakeFeed(), run, progress=False, world=world, **options)


def lora_of(base: Path, run: Path, world: World, **options: Any) -> TrainResult:
    return go(dataclasses.replace(LORA, start_from=str(base)), run, world, **options)


def draw_pictures(folder: Path) -> int:
    return command_line(["shapeworld", "draw", "--count", "3", "--out", str(folder / "pictures")])


def fine_tune_in(folder: Path, run: str, *more: str) -> int:
    """As `rectiflow finetune` does, of the model that ships."""
    data = ["--data", str(folder / "pictures"), "--out", str(folder / run)]
    steps = ["--max-steps", "2", "--batch-size", "2", "--learning-rate", "1e-3"]
    return command_line(["finetune", "tiny", *data, *steps, *more])


def until(step: int, recipe: TrainRecipe, run: Path, world: World) -> TrainResult:
    """Train until the last process alone is told to stop, which is within the given step."""
    act = tell_stop if world.num_processes == 1 else tell_stop_twice
    is_told = world.rank == world.num_processes - 1
    with acting_in(step, act if is_told else lambda: None):
        return go(recipe, run, world)


def in_world(work: Callable[[World], Any]) -> Callable[[], Any]:
    def opened() -> Any:
        with open_world() as world:
            return work(world)

    return opened


def refused(work: Callable[[], Any]) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


def weights(run: Path, stem: str = "weights") -> dict[str, torch.Tensor]:
    return SavedTensors.of(newest(run), stem).read_all()


def distance(run: Path, other: Path, stem: str = "weights") -> float:
    """The length of the difference of all weights, over the length of all weights."""
    mine, theirs = weights(run, stem), weights(other, stem)
    difference = torch.stack([(mine[k] - theirs[k]).norm() for k in mine | theirs]).norm()
    return float(difference / torch.stack([mine[k].norm() for k in mine]).norm())


def is_kept_as_saved(run: Path) -> bool:
    """Whether the power average that was kept after the last step is that of the checkpoint."""
    (kept,) = (run / "averages").glob("step_*")
    average, saved = read_tensors(kept / "sigma_rel_0.1.safetensors"), weights(run, "ema_0.1")
    return average.keys() == saved.keys() and all(torch.equal(average[k], saved[k]) for k in saved)


def differing(run: Path, other: Path) -> list[str]:
    mine, theirs = contents(run), contents(other)
    return [k for k in mine | theirs if mine.get(k) != theirs.get(k)]


def changed_by_a_step(world: World) -> list[str] | None:
    """Which pieces of a snapshot the next step has changed; None in a process that has none."""
    state, share = TrainState.start(ADAMW, world=world), FakeFeed().shard(world.rank, 2)
    train_step(state, share.batch_at(0), ADAMW)
    snapshot = state.snapshot()
    before = copy.deepcopy(snapshot)
    train_step(state, share.batch_at(1), ADAMW)
    if snapshot is None or before is None:
        return None
    assert snapshot.is_copy
    return [
        f"{stem} {name}"
        for stem, pieces in snapshot.pieces.items()
        for name, piece in pieces.items()
        if not torch.equal(piece.values, before.pieces[stem][name].values)
    ]


def memory_of_start(world: World) -> dict[str, int]:
    """How many bytes more a process holds, at most, while it starts; and those of all weights."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_bytes("VmRSS")
    state = TrainState.start(
        dataclasses.replace(ADAMW, backbone=LARGE, ema=EmaConfig()), world=world
    )
    grown = _status_bytes("VmHWM") - before
    return {"grown": grown, "weights": 4 * sum(p.numel() for p in state.backbone.parameters())}


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def held_with_a_lora(base: Path, world: World) -> int:
    """Bytes of weights and of three averages in a process; those in common are counted once."""
    config = dataclasses.replace(BACKBONE, width=64, head_dim=32)
    model = build_backbone(config)
    stored = {name: StoredTensor.of(value) for name, value in model.state_dict().items()}
    first = FirstWeights(name=str(base), sha256="", tensors=stored)
    averages = EmaConfig(sigma_rels=(0.05, 0.1), snapshot_every=50)
    recipe = dataclasses.replace(LORA, backbone=config, ema=averages, start_from=str(base))
    state = TrainState.start(recipe, first, world)
    models = [average.model for average in (state.ema, *state.power_emas.values())]
    parts = [own_part(p) for model in (state.backbone, *models) for p in model.parameters()]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage() for part in parts}
    return sum(storage.nbytes() for storage in storages.values())


def validated(world: World) -> dict[str, Any]:
    """Losses of three held-out batches of different sizes, and the forward passes made for them."""
    backbone, feed = TrainState.start(MUON, world=world).backbone, FakeFeed()
    passes: list[None] = []
    backbone.register_forward_pre_hook(lambda *_: passes.append(None))
    batches = [feed.rows(rows, epoch=-1) for rows in torch.arange(9).split([3, 2, 4])]
    losses = held_out_losses(backbone, batches, MUON, world)
    return {"losses": losses.tolist(), "num_passes": len(passes)}


def one_process(folder: Path) -> Callable[[], Any]:
    def work(world: World) -> dict[str, Any]:
        go(LONG, folder / "long 1", world)
        go(MUON, folder / "muon 1", world)
        go(ADAMW, folder / "adamw 1", world)
        go(dataclasses.replace(ADAMW, micro_batch=2), folder / "adamw 1 by 2", world)
        go(BF16, folder / "bf16 1", world)
        go(FASTER, folder / "faster 1", world)
        go(SPIKY, folder / "spiky 1", world, FakeFeed(poisoned_step=POISONED))
        lora_of(folder / "adamw 1", folder / "lora 1", world)
        return validated(world) | {"held with a LoRA": held_with_a_lora(folder, world)}

    return in_world(work)


def two_processes(folder: Path) -> Callable[[], Any]:
    def work(world: World) -> dict[str, Any]:
        drawn: list[float] = []

        def draw(model: nn.Module, prompts: tuple[str, ...]) -> NDArray[np.uint8]:
            drawn.append(sum(float(p.double().sum()) for p in model.parameters()))
            return np.zeros((len(prompts), 4, 4, 3), dtype=np.uint8)

        go(
            dataclasses.replace(LONG, recompute="products"),
            folder / "long 2",
            world,
            on_sample=draw,
        )
        go(MUON, folder / "muon 2", world)
        go(dataclasses.replace(BF16, recompute="blocks"), folder / "bf16 2", world)
        go(FASTER, folder / "faster 2", world)
        go(SPIKY, folder / "spiky 2", world, FakeFeed(poisoned_step=POISONED))
        lora_of(folder / "adamw 1", folder / "lora 2", world, on_sample=draw)
        stopped = until(3, MUON, folder / "elastic", world)
        uneven = [dataclasses.replace(MUON, **c) for c in ({"batch_size": 3}, {"micro_batch": 3})]
        poisoned = FakeFeed(poisoned_step=2)
        whole_each = mesh_of(world.device, num_copies=2, num_parts=1)
        return {
            "held with a LoRA": held_with_a_lora(folder, world),
            "validated": validated(world),
            "torn": changed_by_a_step(world),
            "torn copies": changed_by_a_step(dataclasses.replace(world, mesh=whole_each)),
            "stopped": (stopped.step, stopped.interrupted),
            "drawn": drawn,
            "uneven": [
                refused(lambda recipe=recipe: go(recipe, folder / "none", world))
                for recipe in uneven
            ],
            "diverged": refused(lambda: go(MUON, folder / "diverged", world, poisoned)),
        }

    return in_world(work)


def four_processes(folder: Path) -> Callable[[], Any]:
    def work(world: World) -> dict[str, Any]:
        go(MUON, folder / "elastic", world)
        two_by_two = mesh_of(world.device, num_copies=2, num_parts=2)
        go(ADAMW, folder / "adamw 2x2", dataclasses.replace(world, mesh=two_by_two))
        return {"memory of start": memory_of_start(world), "validated": validated(world)}

    return in_world(work)


def acting(rank: int, act: Callable[[], None]) -> Callable[[], Any]:
    """One process acts while the others wait for it."""

    def work(world: World) -> None:
        world.wait_for_all()
        if rank in (world.rank, -1):
            act()
        world.wait_for_all()

    return in_world(work)


def complain() -> None:
    raise StoreError("shard 7 is cut; encode it again")


def fail() -> None:
    raise RuntimeError("a defect")


@contextmanager
def acting_in_write(number: int, act: Callable[[Path], None]) -> Generator[None]:
    """Do something in the place of writing the `number`-th file of this process's checkpoints."""
    num_written = 0

    def write(path: Path, tensors: Any, **options: Any) -> None:
        nonlocal num_written
        num_written += 1
        if num_written == number:
            act(path)
        write_tensors(path, tensors, **options)

    tensor_files.write_tensors = write
    try:
        yield
    finally:
        tensor_files.write_tensors = write_tensors


def fill_the_disk(path: Path) -> None:
    raise UserError(f"cannot write {path}: no space left on the disk")


def killed_while_saving(folder: Path) -> Callable[[], Any]:
    """The second process dies within its second checkpoint, of which the first waits for a part."""

    def work(world: World) -> None:
        with acting_in_write(5, lambda _: die()) if world.rank else nullcontext():
            go(MUON, folder / "muon 2 killed", world)

    return in_world(work)


def disk_fills_up(folder: Path) -> Callable[[], Any]:
    """The second process cannot write its second part, while the steps after it are made."""

    def work(world: World) -> None:
        with acting_in_write(4, fill_the_disk) if world.rank else nullcontext():
            go(MUON, folder / "muon 2 full", world)

    return in_world(work)


def typed(*arguments: str) -> Callable[[], Any]:
    return lambda: sys.exit(command_line(arguments))


def troubles(folder: Path) -> dict[str, Group]:
    no_run = ["--data", str(folder), "--out", str(folder / "no run")]
    return {
        "second killed": start_together(2, acting(1, die)),
        "first killed": start_together(2, acting(0, die)),
        "second complains": start_together(3, acting(1, complain)),
        "first complains": start_together(2, acting(0, complain)),
        "all complain": start_together(3, acting(-1, complain)),
        "second fails": start_together(3, acting(1, fail)),
        "command line": start_together(2, typed("train", "demo", *no_run, "--shard-over", "3")),
        "disk full": start_together(2, disk_fills_up(folder)),
        "killed while saving": start_together(2, killed_while_saving(folder)),
    }


def main(folder: Path) -> None:
    def results_of(num_processes: int, work: Callable[[], Any]) -> list[Any]:
        return start_together(num_processes, work).results

    results_of(1, lambda: draw_pictures(folder) or fine_tune_in(folder, "fine-tuned 1"))
    results_of(2, lambda: fine_tune_in(folder, "fine-tuned 2"))
    precision.has_fast_bf16 = lambda device="cpu": True  # emulated if need be, by every process
    (alone,) = results_of(1, one_process(folder))
    first, second = results_of(2, two_processes(folder))
    results_of(1, in_world(lambda world: until(6, MUON, folder / "elastic", world)))
    four = results_of(4, four_processes(folder))
    groups = troubles(folder)
    results_of(2, in_world(lambda world: go(MUON, folder / "muon 2 killed", world)))
    long, base, lora = (
        sum(float(tensor.double().sum()) for tensor in weights(folder / run, "ema").values())
        for run in ("long 2", "adamw 1", "lora 2")
    )
    results = {
        "first": first,
        "second": second,
        "validated": {
            "alone": [alone],
            "two": [first["validated"], second["validated"]],
            "four": [process["validated"] for process in four],
        },
        "held with a LoRA": [p["held with a LoRA"] for p in (alone, first, second)],
        "memory of start": [process["memory of start"] for process in four],
        "distances": {
            "AdamW": distance(folder / "long 1", folder / "long 2"),
            "its average": distance(folder / "long 1", folder / "long 2", "ema"),
            "its power average": distance(folder / "long 1", folder / "long 2", "ema_0.1"),
            "its state": distance(folder / "long 1", folder / "long 2", "optimizer"),
            "Muon": distance(folder / "muon 1", folder / "muon 2"),
            "two copies": distance(folder / "adamw 1", folder / "adamw 2x2"),
            "faster": distance(folder / "faster 1", folder / "faster 2"),
            "its projector": distance(folder / "faster 1", folder / "faster 2", "projector"),
            "taken back": distance(folder / "spiky 1", folder / "spiky 2"),
            "LoRA": distance(folder / "lora 1", folder / "lora 2"),
            "LoRA's average": distance(folder / "lora 1", folder / "lora 2", "ema"),
            "bfloat16": distance(folder / "bf16 1", folder / "bf16 2"),
            "micro-batches": distance(folder / "adamw 1", folder / "adamw 1 by 2"),
        },
        "events": {
            name: list(read_events(folder / name / "metrics.jsonl"))
            for name in (
                "muon 1",
                "muon 2",
                "elastic",
                "adamw 1",
                "adamw 1 by 2",
                "bf16 1",
                "bf16 2",
                "faster 1",
                "faster 2",
                "fine-tuned 1",
                "fine-tuned 2",
            )
        },
        "spikes": [
            [event["back_to"] for event in read_events(folder / run / "spikes.jsonl")]
            for run in ("spiky 1", "spiky 2")
        ],
        "killed": differing(folder / "muon 2", folder / "muon 2 killed"),
        "left over": [path.name for path in (folder / "muon 2 killed").rglob(".*.tmp-*")],
        "parts": sorted(path.name for path in newest(folder / "muon 2").iterdir()),
        "kept averages": is_kept_as_saved(folder / "long 2"),
        "averages": [long, base + lora],
        "kept": {
            path.name: read_header(path)["step"]
            for path in (folder / "muon 2 full" / "checkpoints").glob("[!.]*")
        },
        "replayed": asdict(replay(folder / "diverged" / "failure_step_00000002")),
        "troubles": {name: asdict(group) for name, group in groups.items()},
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
