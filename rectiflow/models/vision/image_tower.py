"""CLIP's image tower: pictures → vectors comparable with the text tower it was trained beside.

Serves CLIP score, distances between sets of CLIP features, and the features that training aligns
with. transformers' own class at any size; the embedded one pairs with the embedded `clip_g`.
Source: arXiv 2103.00020, section 2.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from rectiflow.models.fingerprint import update_with_weights
from rectiflow.models.pretrained import load_pretrained, quiet_transformers


class ImageTower(nn.Module):
    """Frozen image tower; images come in [−1, 1] at the side the tower was trained for."""

    def __init__(self, model: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.model = model
        self.eval().requires_grad_(False)

    @property
    def image_size_px(self) -> int:
        config: Any = self.model.config
        return config.image_size

    @property
    def width(self) -> int:
        """Length of the vectors that `embed` returns."""
        config: Any = self.model.config
        return config.projection_dim

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors; their product with a unit `clip_g.pooled` is the CLIP similarity.

        Raises:
            ValueError: the pictures have another side than the tower reads.
        """
        return F.normalize(self.project(images), dim=-1)

    @torch.no_grad()
    def project(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The vectors before `embed` brings them to length 1.

        Raises:
            ValueError: as `embed`.
        """
        self._check_side(images)
        output: Any = self.model(images)
        return output.image_embeds

    @torch.no_grad()
    def activations(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b p c"], ...]:
        """What each layer says of each of the p patches (the class token is left out).

        Raises:
            ValueError: as `embed`.
        """
        self._check_side(images)
        output: Any = self.model(images, output_hidden_states=True)
        # The first state is the patch embedding: no layer has looked at it yet.
        return tuple(state[:, 1:] for state in output.hidden_states[1:])

    def patch_features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f p p"]:
        """A vector for each of p×p patches of squares of any side, which are scaled to the tower's.

        They are the last layer's but one: only the class token reads on from there, so that nothing
        has taught the last layer what to say of a patch (as arXiv 2304.08485, section 4.1).
        """
        side = self.image_size_px
        if images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        patches = self.activations(images)[-2].mT
        return patches.unflatten(2, (round(patches.shape[2] ** 0.5), -1))

    def fingerprint(self) -> str:
        """SHA-256 over all weights: equal fingerprints, equal features."""
        digest = hashlib.sha256()
        update_with_weights(digest, self)
        return digest.hexdigest()

    def _check_side(self, images: Tensor) -> None:
        side = self.image_size_px
        if images.shape[-2:] != (side, side):
            raise ValueError(
                f"the image tower reads {side}×{side} px, got {images.shape[-2]}×"
                f"{images.shape[-1]}; resize the pictures first"
            )

    def save(self, folder: Path | str) -> None:
        """Write config and weights as transformers does."""
        with quiet_transformers():
            self.model.save_pretrained(folder)


def load_image_tower_folder(folder: Path | str, dtype: torch.dtype = torch.float32) -> ImageTower:
    """Load an image tower that transformers saved.

    Raises:
        UserError: the folder holds no config.
        CheckpointError: weights are damaged, or lack tensors of the model.
    """
    return ImageTower(load_pretrained(CLIPVisionModelWithProjection, Path(folder), dtype))
