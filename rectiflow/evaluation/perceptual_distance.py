"""Perceptual distance: how different two pictures look to the layers of an image tower.

The form of LPIPS (activations of unit length over channels, squared difference, mean over places,
then over layers), but on a CLIP image tower and without weights learned from human judgements: its
values do not compare with published LPIPS. Source: arXiv 1801.03924, section 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rectiflow.models.vision.image_tower import ImageTower

_BATCH_SIZE = 64


def perceptual_distance(
    reconstructions: Float[Tensor, "b 3 h w"],
    images: Float[Tensor, "b2 3 h w"],
    tower: ImageTower,
) -> Float[Tensor, " b"]:
    """Distance of each pair of pictures, 0 (alike) to 4, of images in [−1, 1] at the tower's side.

    Raises:
        ValueError: the pictures differ in number, or have another side than the tower reads.
    """
    if len(reconstructions) != len(images):
        raise ValueError(
            f"{len(reconstructions)} reconstructions came with {len(images)} images; each picture "
            "needs its own original"
        )
    distances: list[Tensor] = []
    for x, y in zip(reconstructions.split(_BATCH_SIZE), images.split(_BATCH_SIZE)):
        layers = [
            (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(dim=-1).mean(dim=-1)
            for a, b in zip(tower.activations(x), tower.activations(y))
        ]
        distances.append(torch.stack(layers).mean(dim=0))
    return torch.cat(distances)
