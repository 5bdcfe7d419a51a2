"""Networks that paint into pictures: told, beside the latents, what is there already and where.

On the walk of a prompt around the backbone, where a picture is edited. Their input is the latents,
a mask that is 1 where they are to paint, and the latents of the picture with that region blanked.
Source: arXiv 2112.10752, section 4.5; channel order as in diffusers, 16 + 1 + 16 for SD3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone


@dataclass(frozen=True, kw_only=True)
class InpaintingNetwork:
    """A backbone for inpainting with one mask and picture, as any network (z_t, t, conditioning).

    Raises:
        ConfigError: the backbone is not one for inpainting.
    """

    backbone: Backbone
    mask: Float[Tensor, "1 1 h w"]
    masked_latents: Float[Tensor, "1 c h w"]

    def __post_init__(self) -> None:
        config = self.backbone.config
        if not config.is_inpainting:
            raise ConfigError(
                f"a {config.title} with in_channels={config.in_channels} and no out_channels takes "
                "no mask; use it as it is"
            )

    def __call__(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        return self.backbone(self.widened(z_t), t, conditioning)

    def widened(self, z_t: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """The backbone's input: the latents, the mask, and what is there already."""
        told = torch.cat([self.mask, self.masked_latents], dim=1).expand(len(z_t), -1, -1, -1)
        return torch.cat([z_t, told], dim=1)
