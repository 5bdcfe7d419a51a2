"""KL-regularised autoencoder whose latents come out shifted and scaled to zero mean, unit std.

Both walks: `data.encode` stores what `encode` returns, `generation` ends with `decode`.
With its defaults it is the released SD3 autoencoder; the embedded one is the same class, smaller.
Source: arXiv 2112.10752, section 3.1; arXiv 2403.03206, section 5.2.1 and table 3.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.base.config import to_json
from rectiflow.base.errors import ConfigError
from rectiflow.models.autoencoder.layers import Decoder, Encoder, HalfSize, inference_layout
from rectiflow.models.fingerprint import update_with_weights

LOGVAR_BOUNDS = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Size and normalisation; the defaults describe the released SD3 autoencoder."""

    image_channels: int = 3
    latent_channels: int = 16
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = 2
    num_norm_groups: int = 32
    use_mid_attention: bool = True
    latent_shift: float = 0.0609
    latent_scale: float = 1.5305

    def __post_init__(self) -> None:
        if self.base_channels % self.num_norm_groups:
            raise ConfigError(
                f"base_channels={self.base_channels} does not divide into "
                f"num_norm_groups={self.num_norm_groups} equal groups; choose a multiple"
            )
        if self.latent_scale <= 0:
            raise ConfigError(f"latent_scale={self.latent_scale} must be positive")

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class LatentDistribution:
    """Diagonal Gaussian over normalised latents: what the store keeps of a picture."""

    mean: Float[Tensor, "b z h w"]
    logvar: Float[Tensor, "b z h w"]

    @staticmethod
    def of_moments(moments: Float[Tensor, "b z2 h w"]) -> LatentDistribution:
        """From what an encoder gives: means, then logarithms of variances, which are bounded."""
        mean, logvar = moments.chunk(2, dim=1)
        return LatentDistribution(mean=mean, logvar=logvar.clamp(*LOGVAR_BOUNDS))

    def sample(self, eps: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """mean + std·eps; the caller draws `eps`, so that the draw has a name."""
        return self.mean + torch.exp(0.5 * self.logvar) * eps

    def kl_to_standard_normal(self) -> Float[Tensor, " b"]:
        """KL(q ‖ N(0, I)) in nats, summed over a picture."""
        kl = 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)
        return kl.flatten(1).sum(dim=1)


class Autoencoder(nn.Module):
    """Images in [−1, 1] ⇄ normalised latents at 1/f of the side.

    Raises:
        ValueError: a side is not a multiple of the downsampling factor.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        size = HalfSize(
            image_channels=config.image_channels,
            latent_channels=config.latent_channels,
            level_channels=tuple(config.base_channels * m for m in config.channel_multipliers),
            num_blocks=config.num_blocks,
            num_norm_groups=config.num_norm_groups,
            use_mid_attention=config.use_mid_attention,
        )
        self.encoder = Encoder(size)
        self.decoder = Decoder(size)

    def check_sides(self, images: Float[Tensor, "b c h w"]) -> None:
        """Pass if the images can be encoded.

        Raises:
            ValueError: a side is not a multiple of the downsampling factor.
        """
        factor = self.config.downsample_factor
        height_px, width_px = images.shape[-2:]
        if height_px % factor or width_px % factor:
            raise ValueError(
                f"images are {height_px}×{width_px} px; both sides must be multiples of {factor}: "
                "crop or resize them first"
            )

    def encode_raw(self, images: Float[Tensor, "b c h w"]) -> LatentDistribution:
        """The distribution before shift and scale; this is what the KL term regularises."""
        self.check_sides(images)
        return LatentDistribution.of_moments(self.encoder(images))

    def encode(self, images: Float[Tensor, "b c h w"]) -> LatentDistribution:
        """Images [b 3 H W] in [−1, 1] → distribution over normalised latents [b z H/f W/f]."""
        return self.normalised(self.encode_raw(inference_layout(images)))

    def normalised(self, raw: LatentDistribution) -> LatentDistribution:
        """The distribution of (raw − shift)·scale, so the variance grows by scale²."""
        mean = (raw.mean - self.config.latent_shift) * self.config.latent_scale
        logvar = raw.logvar + 2.0 * math.log(self.config.latent_scale)
        return LatentDistribution(mean=mean.contiguous(), logvar=logvar.contiguous())

    def decode(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Normalised latents [b z h w] → images [b 3 fh fw], nominally in [−1, 1], not clamped."""
        return self.decoder(inference_layout(self.raw_latents(latents))).contiguous()

    def raw_latents(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """Normalised latents as the decoder takes them: latents/scale + shift."""
        return latents / self.config.latent_scale + self.config.latent_shift

    def fingerprint(self) -> str:
        """SHA-256 over the config and every weight: equal fingerprints, equal latents."""
        digest = hashlib.sha256(json.dumps(to_json(self.config), sort_keys=True).encode())
        update_with_weights(digest, self)
        return digest.hexdigest()
