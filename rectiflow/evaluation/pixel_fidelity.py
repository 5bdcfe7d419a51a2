"""PSNR and SSIM: how near reconstructed pictures come to their originals, pixel by pixel.

One number a picture; a set's score is the mean of its pictures' numbers, which for PSNR is not the
PSNR of the mean error. Sources: Wang et al. 2004 (SSIM); arXiv 2403.03206, table 3.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: Equal pictures would have infinite PSNR, and one of them would decide a mean.
MAX_PSNR_DB = 106.0
#: Images lie in [−1, 1].
_RANGE = 2.0
#: SSIM holds five filtered copies of a batch.
_BATCH_SIZE = 64


def psnr_db(
    reconstructions: Float[Tensor, "b c h w"], images: Float[Tensor, "b2 c2 h2 w2"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each picture in dB, of images in [−1, 1]; at most MAX_PSNR_DB.

    Raises:
        ValueError: the pictures differ in number or size.
    """
    _check_pairs(reconstructions, images)
    return psnr_db_of_error((reconstructions - images).square().flatten(1).mean(dim=1))


def psnr_db_of_error(squared_error: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """PSNR of a mean squared error between images in [−1, 1]: 10·log10(range² / error)."""
    return (10.0 * torch.log10(_RANGE**2 / squared_error)).clamp(max=MAX_PSNR_DB)


def structural_similarity(
    reconstructions: Float[Tensor, "b c h w"], images: Float[Tensor, "b2 c2 h2 w2"]
) -> Float[Tensor, " b"]:
    """SSIM of each picture, at most 1, with the published window and constants (torchmetrics).

    In float32 flat areas cost the fifth decimal; float64 is more than ten times slower.

    Raises:
        ValueError: the pictures differ in number or size.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pairs(reconstructions, images)
    # SSIM compares brightness relative to black, so black has to be 0 and not −1.
    pairs = zip(reconstructions.split(_BATCH_SIZE), images.split(_BATCH_SIZE))
    parts: list[Any] = [
        structural_similarity_index_measure(
            (x + 1.0) / _RANGE, (y + 1.0) / _RANGE, data_range=1.0, reduction="none"
        )
        for x, y in pairs
    ]
    return torch.cat(parts)


def _check_pairs(reconstructions: Tensor, images: Tensor) -> None:
    if reconstructions.shape != images.shape:
        raise ValueError(
            f"reconstructions are {tuple(reconstructions.shape)} and images "
            f"{tuple(images.shape)}; each picture needs its own original, at one size"
        )
