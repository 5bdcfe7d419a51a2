"""How fast a latent store gives batches, at the embedded parts' size; one JSON row.

Writes a store of random rows, then times `Loader.batch_at` over random steps: in memory, memory-
mapped, and in memory with the next batch read ahead. Measured in the same run: what a plain
`torch.utils.data.DataLoader` over the same tensors gives (the peer), and gathering the rows alone,
without order, keys or captions (the limit), and how many samples the demo's training takes of the
same store.

    python benchmarks/store_to_batches.py [--samples 8192] [--batch-size 64] [--repeats 200]
        [--training-s 20]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from rectiflow.data.latent_store import LatentStore
from rectiflow.data.loader import Loader, Prefetcher
from rectiflow.data.store_format import LATENT_DTYPE, TEXT_DTYPES
from rectiflow.data.store_writer import open_store_writer
from rectiflow.recipes.small import demo
from rectiflow.training.calibration import calibrate
from rectiflow.training.environment import describe_environment

LATENT_SHAPE = (16, 8, 8)
TEXT_SHAPES = {
    "clip_l.context": (16, 64),
    "clip_l.pooled": (64,),
    "clip_g.context": (16, 96),
    "clip_g.pooled": (96,),
    "t5.context": (16, 192),
}
VARIANTS = ("full", "terse")
WARM_UP = 20


def write_store(path: Path, num_samples: int) -> None:
    """A store with one picture and two captions of its own for each sample."""
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    with open_store_writer(
        path, resolution_px=64, autoencoder="random", text={}, max_shard_bytes=16 * 2**20
    ) as writer:
        index: list[dict[str, Any]] = []
        for i in range(num_samples):
            latents = {
                "mean": random(LATENT_SHAPE, LATENT_DTYPE),
                "logvar": random(LATENT_SHAPE, LATENT_DTYPE),
            }
            writer.latents.append(f"{i:064x}", latents)
            for variant, _ in enumerate(VARIANTS):
                states = {n: random(shape, TEXT_DTYPES[n]) for n, shape in TEXT_SHAPES.items()}
                writer.text.append(f"{2 * i + variant:064x}", states)
            sides = ("height_px", "width_px", "crop_height_px", "crop_width_px")
            row = dict.fromkeys(sides, 64) | {"crop_top_px": 0, "crop_left_px": 0}
            row |= {"file": f"{i:06d}.png", "content_hash": f"{i:064x}", "latent_row": i}
            row |= {f"text_row.{name}": 2 * i + v for v, name in enumerate(VARIANTS)}
            index.append(row)
        writer.finish(
            index, [], variants=VARIANTS, empty_prompt_row=0, source="benchmark", world=None
        )


def seconds_each(make: Callable[[int], object], repeats: int) -> list[float]:
    """Wall time of each of `repeats` calls, after a warm-up."""
    for step in range(WARM_UP):
        make(step)
    times: list[float] = []
    for step in range(WARM_UP, WARM_UP + repeats):
        start = time.perf_counter()
        make(step)
        times.append(time.perf_counter() - start)
    return times


def summarize(times: list[float], batch_size: int) -> dict[str, float]:
    """Median and p10-p90 of a batch in milliseconds, and the rates at the median."""
    p10, median, p90 = torch.tensor(times).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {
        "median_ms": round(1e3 * median, 4),
        "p10_ms": round(1e3 * p10, 4),
        "p90_ms": round(1e3 * p90, 4),
        "batches_per_s": round(1 / median, 1),
        "samples_per_s": round(batch_size / median),
    }


def endless(loader: DataLoader[tuple[torch.Tensor, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Epoch after epoch."""
    while True:
        yield from loader


def main() -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--training-s", type=float, default=20.0)
    options = parser.parse_args()
    size, repeats = options.batch_size, options.repeats
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        write_store(path, options.samples)
        start = time.perf_counter()
        store = LatentStore(path)
        store.read(torch.arange(1))
        open_s = time.perf_counter() - start
        mapped = LatentStore(path, max_bytes_in_memory=0)
        rows = store.read(torch.arange(options.samples))
        columns = (rows.x0_mean, rows.x0_logvar, *rows.encoded_text.values())
        peer = endless(DataLoader(TensorDataset(*columns), batch_size=size, shuffle=True))
        picks = torch.randint(options.samples, (WARM_UP + repeats, size))
        ahead = Prefetcher(Loader(store, batch_size=size, seed=0))
        makers: dict[str, Callable[[int], object]] = {
            "in_memory": Loader(store, batch_size=size, seed=0).batch_at,
            "memory_mapped": Loader(mapped, batch_size=size, seed=0).batch_at,
            "prefetched": lambda step: ahead.batch_at(step, then=step + 1),
            "peer_torch_dataloader": lambda _: next(peer),
            "limit_gather": lambda step: [c.index_select(0, picks[step]) for c in columns],
        }
        results = {n: summarize(seconds_each(make, repeats), size) for n, make in makers.items()}
        ahead.close()
        recipe = demo()
        training = recipe.batch_size * calibrate(recipe, path, options.training_s)
        store_bytes = sum(file.stat().st_size for file in path.iterdir())
    ratio = results["in_memory"]["samples_per_s"] / training
    print(
        json.dumps(
            {
                "benchmark": "store_to_batches",
                "environment": describe_environment(),
                "samples": options.samples,
                "batch_size": size,
                "latents": LATENT_SHAPE,
                "text": TEXT_SHAPES,
                "dtypes": {n: str(d) for n, d in {"latents": LATENT_DTYPE, **TEXT_DTYPES}.items()},
                "store_bytes": store_bytes,
                "warm_up": WARM_UP,
                "repeats": repeats,
                "open_and_verify_s": round(open_s, 3),
                "results": results,
                "training": {"recipe": recipe.name, "batch_size": recipe.batch_size},
                "training_samples_per_s": round(training, 1),
                "times_training": round(ratio, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
