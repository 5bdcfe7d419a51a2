"""CLIP score: how well pictures fit their prompts, as the mean cosine of CLIP's two vectors.

On the scale −1 to 1, as in the paper's tables (others multiply by 100 or 2.5, or cut at 0). It
depends on the backbone, and on the prompts: compare only where both are the same.
Sources: arXiv 2104.08718; arXiv 2403.03206, section 5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from rectiflow.evaluation.bootstrap import Interval, bootstrap_mean
from rectiflow.evaluation.clip import ClipEmbedder
from rectiflow.evaluation.features import Features, check_comparable


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """Mean cosine in [−1, 1] with the interval over prompts, and what it depends on."""

    cosine: Interval
    num_prompts: int
    num_pictures: int
    backbone: str

    def __str__(self) -> str:
        cosine = self.cosine
        return (
            f"CLIP score {cosine.mean:.4f} [{cosine.low:.4f}, {cosine.high:.4f}] "
            f"(n = {self.num_pictures}, {self.backbone})"
        )


def clip_score(
    images: UInt8[np.ndarray, "n h w 3"],
    prompts: Sequence[str],
    embedder: ClipEmbedder,
    *,
    seed: int = 0,
) -> ClipScore:
    """CLIP score of pictures, each with its prompt; every prompt weighs the same.

    Raises:
        ValueError: no pictures, or another number of prompts.
    """
    texts = embedder.embed_texts(list(dict.fromkeys(prompts)))
    return clip_score_of_features(embedder.embed_images(images), texts, prompts, seed=seed)


def clip_score_of_features(
    images: Features, texts: Features, prompts: Sequence[str], *, seed: int = 0
) -> ClipScore:
    """CLIP score where the vectors are known.

    Args:
        images: of the pictures.
        texts: of the distinct prompts, in the order in which they first come in `prompts`.
        prompts: the prompt of each picture.
        seed: of the bootstrap.

    Raises:
        ValueError: the counts do not fit, or the backbones differ.
    """
    check_comparable(images, texts)
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    if len(prompts) != len(images) or len(texts) != len(row):
        raise ValueError(
            f"{len(images)} pictures came with {len(prompts)} prompts, of which {len(row)} are "
            f"distinct, and {len(texts)} text vectors; give a prompt for each picture and a vector "
            "for each distinct prompt"
        )
    rows = [row[prompt] for prompt in prompts]
    groups: list[list[float]] = [[] for _ in row]
    for i, value in zip(rows, cosines(images.vectors, texts.vectors[rows]).tolist()):
        groups[i].append(value)
    return ClipScore(
        cosine=_interval(groups, seed=seed),
        num_prompts=len(row),
        num_pictures=len(images),
        backbone=images.backbone,
    )


def cosines(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Row by row the cosine of the angle, in [−1, 1], float64."""
    unit_images = F.normalize(images.double(), dim=-1)
    unit_texts = F.normalize(texts.double(), dim=-1)
    return (unit_images * unit_texts).sum(dim=-1).clamp(-1.0, 1.0)


def _interval(groups: Sequence[Sequence[float]], *, seed: int) -> Interval:
    # The bootstrap knows means of values in [0, 1]; a mean moves and stretches as its values do.
    shares = bootstrap_mean([[0.5 + 0.5 * value for value in group] for group in groups], seed=seed)
    low, mean, high = (2.0 * share - 1.0 for share in (shares.low, shares.mean, shares.high))
    return Interval(mean=mean, low=low, high=high)
