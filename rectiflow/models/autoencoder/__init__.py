"""The image autoencoder: pictures ⇄ latents at an eighth of the side."""

from rectiflow.models.autoencoder.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    LatentDistribution,
)

__all__ = ["Autoencoder", "AutoencoderConfig", "LatentDistribution"]
