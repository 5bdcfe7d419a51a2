"""What `rectiflow plan` predicts for this machine, against steps of the same recipe; JSON rows.

Each case runs in a process of its own: the planner's ten-second timing first, then training steps
on the same random numbers. Memory is measured twice: what tensors hold at most, as the allocator
reports it to the profiler (the figure that CUDA's allocator reports too), and how far the process's
resident set grows, which adds what the C library keeps of freed memory. Targets: memory held by
tensors within 10 %, step time within 25 %.

    python benchmarks/planner.py [--seconds 20]
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from measure import print_row, summarize
from torch.profiler import ProfilerActivity, profile

from rectiflow.data.records import Batch
from rectiflow.models.flops import InputSize
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.recipes.small import demo, small
from rectiflow.training.planner import plan_here, random_batch
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step

CASES: dict[str, tuple[TrainRecipe, InputSize]] = {
    "demo, batch of 64": (
        replace(demo(), batch_size=64),
        InputSize(height=8, width=8, num_text=32),
    ),
    # Gradients of one half stand beside the other's activations.
    "depth 4, two micro-batches of 9": (
        replace(
            small(
                "depth-4",
                MMDiTConfig(
                    depth=4, context_dim=256, pooled_dim=192, position_side=16, base_side=4
                ),
            ),
            batch_size=18,
            micro_batch=9,
            precision="fp32",
        ),
        InputSize(height=8, width=8, num_text=32),
    ),
    "depth 8, 256+154 tokens": (
        replace(
            small(
                "depth-8",
                MMDiTConfig(
                    depth=8, context_dim=4096, pooled_dim=2048, position_side=16, base_side=16
                ),
            ),
            batch_size=2,
        ),
        InputSize(height=32, width=32, num_text=154),
    ),
}


def measure(name: str, seconds: float) -> None:
    """Predict and measure one case."""
    recipe, size = CASES[name]
    plan = plan_here(recipe, size)
    # What the timing held goes back to the system, so that the peak is that of these steps.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    state, batch = TrainState.start(recipe), random_batch(recipe, size)
    durations: list[float] = []
    while len(durations) < 4 or sum(durations) < seconds:
        started = time.perf_counter()
        train_step(state, batch, recipe)
        durations.append(time.perf_counter() - started)
    resident = status_bytes("VmHWM") - before
    held = standing_bytes(state) + step_bytes(state, batch, recipe)
    step_s = statistics.median(durations[1:])
    print_row(
        "planner",
        case=name,
        dtype=str(plan.dtype),
        repeats=len(durations) - 1,
        memory_mb={
            "predicted": round(plan.memory.peak / 1e6, 1),
            "held_by_tensors": round(held / 1e6, 1),
            "resident": round(resident / 1e6, 1),
        },
        memory_error=round(plan.memory.peak / held - 1.0, 4),
        step_s={"predicted": round(plan.step_s, 4), "measured": summarize(durations[1:])},
        step_error=round(plan.step_s / step_s - 1.0, 4),
    )


def status_bytes(name: str) -> int:
    """A figure of the process's memory as the kernel tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def standing_bytes(state: TrainState) -> int:
    """What the state's tensors hold between steps."""
    return sum(t.nbytes for tensors in state.tensors().values() for t in tensors.values())


def step_bytes(state: TrainState, batch: Batch, recipe: TrainRecipe) -> int:
    """The most that a step allocates above what was held when it began."""
    state.backbone.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train_step(state, batch, recipe)
    events = profiled.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate(num_bytes for _, num_bytes in sorted(changes)))


def main() -> None:
    """Every case in a fresh process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--case", choices=tuple(CASES))
    options = parser.parse_args()
    if options.case is not None:
        measure(options.case, options.seconds)
        return
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--seconds", str(options.seconds)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
