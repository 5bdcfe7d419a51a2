"""Where a run's time goes, how much memory it takes, and what its hardware does: without guesses.

On the walk of a sample beside the loop, which says what it is doing; `hooks` show the result.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from rectiflow.data.records import Batch
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.flops import InputSize, around_flops, block_flops, num_image_tokens
from rectiflow.models.precision import compute_dtype
from rectiflow.training.accelerators import peak_flops
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.routing import TokenRouting

Activity = Literal["data", "step", "validation", "sampling", "saving"]
ACTIVITIES: tuple[Activity, ...] = ("data", "step", "validation", "sampling", "saving")
#: The backward pass computes two products for each of the forward pass; one where the weights are
#: frozen, for theirs is the other.
FORWARD_PASSES_PER_STEP = 3
FORWARD_PASSES_PER_FROZEN_STEP = 2


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the time since the last log line went into, and what came out of it.

    `shares` has for each of `ACTIVITIES` the share of the time in [0, 1]; "data" is waiting for
    batches, and what is missing to 1 is logging. `peak_memory_bytes` is the most that this process
    has held so far: memory allocated on a CUDA device, elsewhere its resident set.
    `flops_per_second` are the model's own operations in training steps, of all processes, those
    that the loss needs (three forward passes' worth, two where all but a LoRA is frozen; nothing
    computed twice counts twice), over the seconds of "data" and "step". `mfu` is their share of
    the devices' peak for the precision, None where that is not known.
    """

    shares: dict[str, float]
    peak_memory_bytes: int
    flops_per_second: float
    mfu: float | None

    def __str__(self) -> str:
        """A few words for a progress line, such as "MFU 41%, data 2%"."""
        speed = f"{scaled(self.flops_per_second)}FLOP/s" if self.mfu is None else _percent(self.mfu)
        return f"{speed}, data {self.shares['data']:.0%}, {scaled(self.peak_memory_bytes)}B"


class Meter:
    """Adds up seconds by activity, images and operations, from one reading to the next."""

    def __init__(
        self, recipe: TrainRecipe, device: torch.device | str = "cpu", *, num_processes: int = 1
    ) -> None:
        self._recipe, self._num_processes = recipe, num_processes
        self._device = torch.device(device)
        self._peak = peak_flops(self._device, compute_dtype(recipe.precision, self._device))
        self._restart()

    @contextmanager
    def spending(self, activity: Activity) -> Generator[None]:
        """The time within goes into `activity`."""
        started = time.perf_counter()
        yield
        self._seconds[activity] += time.perf_counter() - started

    def count(self, batch: Batch) -> None:
        """A training step has been made, here on `batch` and in the other processes alike."""
        self._num_images += len(batch.keys)
        self._flops += len(batch.keys) * step_flops(self._recipe, input_size(batch))

    @property
    def images_per_second(self) -> float:
        """Of all processes since the last reading, over the seconds of "data" and "step"."""
        return self._num_processes * self._num_images / max(self._training_s, 1e-9)

    def read(self) -> Usage:
        """What was used since the last reading; starts anew."""
        elapsed_s = max(time.perf_counter() - self._since, 1e-9)
        flops_per_second = self._flops / max(self._training_s, 1e-9)
        usage = Usage(
            shares={name: round(self._seconds[name] / elapsed_s, 4) for name in ACTIVITIES},
            peak_memory_bytes=peak_memory_bytes(self._device),
            flops_per_second=self._num_processes * flops_per_second,
            mfu=None if self._peak is None else flops_per_second / self._peak,
        )
        self._restart()
        return usage

    @property
    def _training_s(self) -> float:
        return self._seconds["data"] + self._seconds["step"]

    def _restart(self) -> None:
        self._seconds: dict[Activity, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._since = time.perf_counter()
        self._num_images, self._flops = 0, 0


def input_size(batch: Batch) -> InputSize:
    """One sample of a batch as the backbone sees it."""
    height, width = batch.x0_mean.shape[-2:]
    # The CLIP towers share their tokens, T5's stand behind them.
    num_text = sum(batch.encoded_text[f"{name}.context"].shape[1] for name in ("clip_l", "t5"))
    return InputSize(height=height, width=width, num_text=num_text)


def step_flops(recipe: TrainRecipe, size: InputSize) -> int:
    """The model's operations for one sample of a training step, forward and backward.

    Attention is counted over all pairs of tokens and every stream with its own weights, as in
    `models.flops`; the optimizer is not counted, as usual for MFU (arXiv 2204.02311, appendix B),
    nor are a LoRA's own products or an alignment's projector.
    """
    passes = FORWARD_PASSES_PER_STEP if recipe.lora is None else FORWARD_PASSES_PER_FROZEN_STEP
    around = around_flops(recipe.backbone, size)
    return passes * (around + routed_flops(recipe.backbone, recipe.routing, size))


@lru_cache(maxsize=256)
def routed_flops(config: BackboneConfig, routing: TokenRouting, size: InputSize) -> int:
    """A forward pass of all blocks for one sample, where some image tokens pass by some blocks."""
    num_image = num_image_tokens(config, size)
    routed = range(routing.first, routing.last + 1) if routing.is_on else range(0)
    counts = (
        routing.num_kept(num_image) if block in routed else num_image
        for block in range(config.depth)
    )
    return sum(
        block_flops(config, block, count, size.num_text) for block, count in enumerate(counts)
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: allocated by CUDA, or its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def scaled(value: float) -> str:
    """Three digits and the letter of a power of a thousand: 43.2 G, 512 M."""
    for letter in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5:
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {letter}"
        value /= 1000.0
    return f"{value:.0f} Z"


def pace(images_per_second: float) -> str:
    """Images a second as a number to read: of few, as large models make, two digits."""
    digits = 0 if images_per_second >= 9.95 else 1 if images_per_second >= 0.995 else 2
    return f"{images_per_second:,.{digits}f}"


def _percent(mfu: float) -> str:
    return f"MFU {mfu:.0%}"
