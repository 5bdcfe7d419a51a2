"""The embedded autoencoder: f = 8, 16 channels, trained on pictures of both worlds.

`python -m rectiflow.recipes.parts autoencoder --out DIR` makes it again; the result ships in
`rectiflow/models/shipped/autoencoder`. It never sees a held-out combination.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.generators import torch_generator
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import FULL, SMALL
from rectiflow.training.parts.autoencoder import (
    AutoencoderLoss,
    AutoencoderTraining,
    train_autoencoder,
)

#: A small member of the released family: no attention in the middle keeps latents local.
CONFIG = AutoencoderConfig(
    base_channels=16,
    num_norm_groups=8,
    num_blocks=1,
    use_mid_attention=False,
    latent_shift=0.0,
    latent_scale=1.0,
)
TRAINING = AutoencoderTraining(num_steps=7000, batch_size=16, learning_rate=1.5e-3, kl_weight=4e-3)
#: Pictures from which the latents' mean and standard deviation are taken.
NUM_STATISTICS = 1024


def world_images(indices: range, *, seed: int, split: str) -> Float[Tensor, "b 3 64 64"]:
    """Pictures in [−1, 1]: even indices show the small world, odd ones the full world."""
    pictures = [
        render(world, sample_scene(world, split=split, seed=seed, index=index))
        for index in indices
        for world in ((SMALL, FULL)[index % 2],)
    ]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1.0


def training_batches(training: AutoencoderTraining) -> Iterator[Tensor]:
    """An endless stream of new pictures."""
    step = 0
    while True:
        first = step * training.batch_size
        yield world_images(
            range(first, first + training.batch_size), seed=training.seed, split="train"
        )
        step += 1


@torch.inference_mode()
def with_measured_normalisation(autoencoder: Autoencoder, seed: int) -> Autoencoder:
    """The same weights with the shift and scale that give latents zero mean and unit std."""
    images = world_images(range(NUM_STATISTICS), seed=seed + 1, split="train")
    raw = [autoencoder.encode_raw(chunk) for chunk in images.split(64)]
    mean = torch.cat([part.mean for part in raw])
    variance = torch.cat([part.logvar for part in raw]).exp()
    # A latent is a posterior sample: its variance is the means' variance plus the mean variance.
    std = (mean.var() + variance.mean()).sqrt()
    config = replace(
        autoencoder.config, latent_shift=float(mean.mean()), latent_scale=float(1.0 / std)
    )
    normalised = Autoencoder(config)
    normalised.load_state_dict(autoencoder.state_dict())
    return normalised.eval()


def make_autoencoder(out: Path, training: AutoencoderTraining = TRAINING) -> Autoencoder:
    """Train from nothing, print progress, save weights and configuration to `out`."""
    torch.manual_seed(training.seed)
    autoencoder = Autoencoder(CONFIG)
    started = time.monotonic()

    def report(step: int, loss: AutoencoderLoss) -> None:
        if (step + 1) % 50 == 0:
            psnr = 10 * torch.log10(4.0 / loss.squared_error)
            print(
                f"step {step + 1}/{training.num_steps} {time.monotonic() - started:.0f} s  "
                f"abs {loss.absolute_error:.4f} psnr {psnr:.2f} dB kl/value {loss.kl:.3f} nats",
                flush=True,
            )
        if (step + 1) % 1000 == 0:
            save(autoencoder, out)

    train_autoencoder(autoencoder, training_batches(training), training, report)
    normalised = with_measured_normalisation(autoencoder, training.seed)
    save(normalised, out)
    return normalised
