"""Training of the autoencoder: reconstruction, a KL term, and a decoder that forgives noise.

The decoder is also trained on latents with Gaussian noise added, so that the small errors of a
generative model do not show in pictures. Source: arXiv 2112.10752, section 3.1 (KL-regularised
autoencoder); noise-augmented decoding as in arXiv 2510.11690, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rectiflow.base.philox import keys_for, normal, uniform
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.precision import autocast
from rectiflow.training.schedule import cosine_factor


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """Hyperparameters of one training run.

    `kl_weight` is per latent value in nats; `max_decoder_noise` is the largest standard deviation
    of the added noise, as a share of the latents' own.
    """

    seed: int = 0
    num_steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    kl_weight: float = 1e-3
    max_decoder_noise: float = 0.5
    gradient_clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """Terms of one step, each a mean over the batch."""

    total: Tensor
    absolute_error: Tensor
    squared_error: Tensor
    kl: Tensor


def autoencoder_loss(
    autoencoder: Autoencoder,
    images: Float[Tensor, "b c h w"],
    keys: Tensor,
    training: AutoencoderTraining,
) -> AutoencoderLoss:
    """Sample the posterior, disturb half of the batch's latents, decode, compare.

    Works on raw latents; shift and scale are measured after training.
    """
    posterior = autoencoder.encode_raw(images)
    shape = tuple(posterior.mean.shape[1:])
    latents = posterior.sample(normal(keys, shape, stream=0))
    spread = latents.detach().std()
    # Half of the pictures keep their latents, so that clean ones stay sharp.
    strength = (2.0 * uniform(keys, 1, stream=1) - 1.0).clamp(min=0.0) * training.max_decoder_noise
    noise = normal(keys, shape, stream=2) * (strength[:, :, None, None] * spread)
    decoded = autoencoder.decoder(latents + noise).float()
    absolute = F.l1_loss(decoded, images)
    squared = F.mse_loss(decoded, images)
    kl = posterior.kl_to_standard_normal().mean() / math.prod(shape)
    return AutoencoderLoss(
        total=absolute + squared + training.kl_weight * kl,
        absolute_error=absolute.detach(),
        squared_error=squared.detach(),
        kl=kl.detach(),
    )


def train_autoencoder(
    autoencoder: Autoencoder,
    batches: Iterator[Float[Tensor, "b c h w"]],
    training: AutoencoderTraining,
    on_step: Callable[[int, AutoencoderLoss], None],
) -> None:
    """Train in place for `training.num_steps` batches of images in [−1, 1]."""
    optimizer = torch.optim.AdamW(
        autoencoder.parameters(), lr=training.learning_rate, weight_decay=0.0, fused=True
    )
    # Convolutions are fastest in channels-last; torch's type stubs leave the argument out.
    autoencoder.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for step in range(training.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * cosine_factor(
                step, training.num_steps, warmup_steps=training.warmup_steps
            )
        images = next(batches).contiguous(memory_format=torch.channels_last)
        indices = torch.arange(len(images)) + step * len(images)
        keys = keys_for(training.seed, "autoencoder", indices=indices)
        with autocast("auto"):
            loss = autoencoder_loss(autoencoder, images, keys, training)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, loss)
    autoencoder.eval()
