"""A training step of SD3-medium's size on a GPU, with the optimizer and the average; JSON rows.

The engine's own step on random latents and text of the store's shapes: 2 billion weights in
float32, products in bfloat16, AdamW, a moving average, 256 px and 154 text tokens. Once as it is,
once with every block compiled, both with what `--recompute` leaves. MFU is of the device's peak,
where that is known. Needs PyTorch and this package, nothing else.

    python benchmarks/released_training.py [--batch 64] [--recompute none|products|blocks]
    python benchmarks/released_training.py --device cpu --depth 2 --side 64 --batch 2    # a try
"""

import argparse
import time
from dataclasses import replace

import torch
from measure import print_row, summarize

from rectiflow.distributed.world import World
from rectiflow.models.flops import InputSize
from rectiflow.models.precision import usable_device
from rectiflow.models.published import RELEASED
from rectiflow.training.meter import Meter, peak_memory_bytes
from rectiflow.training.planner import random_batch
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step

NUM_TEXT = 154
LATENT_FACTOR = 8


def measure(recipe: TrainRecipe, size: InputSize, world: World, *, repeats: int) -> None:
    """Print the row of one recipe."""
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    state = TrainState.start(recipe, world=world)
    batch = random_batch(recipe, size).to(world.device)
    meter = Meter(recipe, world.device)
    seconds: list[float] = []
    # The first steps compile, and choose kernels; a step ends when its loss has been read.
    for turn in range(recipe.max_steps):
        if turn == recipe.max_steps - repeats:
            meter.read()
        started = time.perf_counter()
        with meter.spending("step"):
            result = train_step(state, batch, recipe)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
        meter.count(batch)
        if turn >= recipe.max_steps - repeats:
            seconds.append(time.perf_counter() - started)
    assert result.is_finite
    usage = meter.read()
    print_row(
        "released_training",
        way="compiled" if recipe.compile_blocks else "eager",
        recompute=recipe.recompute,
        depth=recipe.backbone.depth,
        batch=recipe.batch_size,
        side_px=LATENT_FACTOR * size.height,
        step_s=summarize(seconds),
        images_per_s=round(recipe.batch_size / summarize(seconds)["median"], 2),
        flops_per_s=usage.flops_per_second,
        mfu=usage.mfu,
        peak_memory_bytes=peak_memory_bytes(world.device),
        device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        repeats=repeats,
    )


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--recompute", choices=("none", "products", "blocks"), default="none")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    world = World(device=usable_device(arguments.device))
    side = arguments.side // LATENT_FACTOR
    size = InputSize(height=side, width=side, num_text=NUM_TEXT)
    recipe = TrainRecipe(
        name="released-training",
        backbone=replace(RELEASED["SD3-medium"], depth=arguments.depth),
        batch_size=arguments.batch,
        recompute=arguments.recompute,
        max_steps=arguments.repeats + 3,
    )
    for is_compiled in (False, True):
        measure(replace(recipe, compile_blocks=is_compiled), size, world, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
