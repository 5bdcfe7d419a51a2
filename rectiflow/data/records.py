"""What a sample is at each stop on its walk: raw, curated, encoded, part of a batch.

Every record is a named, frozen value. `Rejection` is what a sample becomes that cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """A picture file as it was found.

    `file` is its path inside the folder, with forward slashes; `captions` maps the name of a
    caption variant to its text.
    """

    file: str
    image_bytes: bytes
    captions: Mapping[str, str]
    origin: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class CuratedSample:
    """A decoded picture that passed the stages so far.

    `pixels` are sRGB, 0..255. `size_px` is (height, width) of the upright original; `crop_px` is
    the part of it that `pixels` show: (top, left, height, width).
    """

    file: str
    pixels: UInt8[np.ndarray, "h w 3"]
    size_px: tuple[int, int]
    crop_px: tuple[int, int, int, int]
    captions: Mapping[str, str]
    content_hash: str
    origin: str | None = None
    license: str | None = None


def images_from_pixels(pixels: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[Tensor, "b 3 h w"]:
    """Pixels [h w 3] in 0..255 to images in [−1, 1]: value / 127.5 − 1."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why a picture cannot be used: the stage that dropped it, a reason in words, a score."""

    file: str
    stage: str
    reason: str
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A picture's latent distribution and where it came from; its captions are stored apart.

    `mean` and `logvar` are normalised latents, float16; `features` what an image encoder says of
    p×p patches, float16, None where none was asked.
    """

    content_hash: str
    mean: Float[Tensor, "z h w"]
    logvar: Float[Tensor, "z h w"]
    size_px: tuple[int, int]
    crop_px: tuple[int, int, int, int]
    features: Float[Tensor, "f p p"] | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Rows of a latent store: latents as a distribution, and one caption's states each.

    `encoded_text` has the columns of `models.text.encoded.COLUMNS`, each [b, ...]; `features` are
    those of `EncodedSample`, None where the store has none.
    """

    x0_mean: Float[Tensor, "b z h w"]
    x0_logvar: Float[Tensor, "b z h w"]
    encoded_text: dict[str, Tensor]
    indices: Int[Tensor, " b"]
    features: Float[Tensor, "b f p p"] | None = None

    def __len__(self) -> int:
        return self.indices.shape[0]


@dataclass(frozen=True, kw_only=True)
class Batch(EncodedBatch):
    """What one training step reads: encoded rows and a Philox key for each sample's choices.

    `positions` are the samples' places in the endless stream of epochs. `weights` multiply the
    samples' losses before their mean is taken; None where all count the same.
    """

    keys: Int[Tensor, " b"]
    positions: Int[Tensor, " b"]
    weights: Float[Tensor, " b"] | None = None

    def __getitem__(self, rows: slice) -> Batch:
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            x0_mean=change(self.x0_mean),
            x0_logvar=change(self.x0_logvar),
            encoded_text={name: change(column) for name, column in self.encoded_text.items()},
            indices=change(self.indices),
            features=None if self.features is None else change(self.features),
            keys=change(self.keys),
            positions=change(self.positions),
            weights=None if self.weights is None else change(self.weights),
        )
