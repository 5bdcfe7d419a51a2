"""Pictures and captions to the rows that a latent store keeps: the frozen parts at work.

Pictures run in batches of one fixed shape, the last one filled up, so that a row has the same bits
whatever stands beside it. Source: arXiv 2403.03206, appendix B.3 (pre-computed latents and text).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import UserError
from rectiflow.data.records import CuratedSample, EncodedSample, images_from_pixels
from rectiflow.data.store_format import FEATURE_DTYPE, LATENT_DTYPE, TEXT_DTYPES
from rectiflow.models.autoencoder import Autoencoder, tiling
from rectiflow.models.text.encoded import EncodedText


@runtime_checkable
class PromptEncoder(Protocol):
    """What encoding needs of `models.text.conditioner.TextConditioner`.

    Law: a prompt's states do not depend on the prompts beside it.
    """

    def encode(self, prompts: Sequence[str]) -> EncodedText: ...

    def truncations(self, prompt: str) -> list[tuple[str, str]]: ...

    def fingerprints(self) -> dict[str, str]: ...


@runtime_checkable
class PictureEncoder(Protocol):
    """What encoding needs of `models.vision.ImageTower` for the features of patches.

    Law: a picture's features do not depend on the pictures beside it. It is where the autoencoder
    is.
    """

    def patch_features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b f p p"]: ...

    def fingerprint(self) -> str: ...


def caption_hash(text: str) -> str:
    """What identifies a caption: the SHA-256 of its UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def encode_pictures(
    autoencoder: Autoencoder,
    samples: Sequence[CuratedSample],
    *,
    batch_size: int,
    image_encoder: PictureEncoder | None = None,
) -> list[EncodedSample]:
    """Encode up to `batch_size` pictures of one size, in a batch that is filled up to that size.

    Raises:
        UserError: the autoencoder or the image encoder gives values that are not finite in float16.
    """
    weight = next(autoencoder.parameters())
    filled = torch.zeros(batch_size, 3, *samples[0].pixels.shape[:2])
    filled[: len(samples)] = images_from_pixels([sample.pixels for sample in samples])
    filled = filled.to(weight.device)
    encoded = tiling.encode(autoencoder, filled.to(weight.dtype))
    mean = encoded.mean.to(device="cpu", dtype=LATENT_DTYPE)
    logvar = encoded.logvar.to(device="cpu", dtype=LATENT_DTYPE)
    features = None
    if image_encoder is not None:
        features = image_encoder.patch_features(filled).to(device="cpu", dtype=FEATURE_DTYPE)
    for i, sample in enumerate(samples):
        _check_finite({"mean": mean[i], "logvar": logvar[i]}, f"the autoencoder for {sample.file}")
        if features is not None:
            _check_finite({"features": features[i]}, f"the image encoder for {sample.file}")
    return [
        EncodedSample(
            content_hash=sample.content_hash,
            mean=mean[i],
            logvar=logvar[i],
            size_px=sample.size_px,
            crop_px=sample.crop_px,
            features=None if features is None else features[i],
        )
        for i, sample in enumerate(samples)
    ]


@torch.no_grad()
def encode_captions(conditioner: PromptEncoder, texts: Sequence[str]) -> list[dict[str, Tensor]]:
    """The stored columns of each caption.

    Raises:
        UserError: an encoder gives values that are not finite in the stored type.
    """
    columns = {
        name: column.to(device="cpu", dtype=TEXT_DTYPES[name])
        for name, column in conditioner.encode(list(texts)).columns().items()
    }
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(texts))]
    for text, row in zip(texts, rows):
        _check_finite(row, f"the text encoder for {text!r:.60}")
    return rows


def latent_row(sample: EncodedSample) -> dict[str, Tensor]:
    """The columns of a picture's row."""
    row = {
        "mean": sample.mean,
        "logvar": sample.logvar,
        "size_px": torch.tensor(sample.size_px, dtype=torch.int32),
        "crop_px": torch.tensor(sample.crop_px, dtype=torch.int32),
    }
    return row if sample.features is None else row | {"features": sample.features}


def _check_finite(row: Mapping[str, Tensor], whose: str) -> None:
    for name, values in row.items():
        if not bool(torch.isfinite(values).all()):
            raise UserError(
                f"{whose} gave {name} that is not finite in {values.dtype}; its weights are "
                "damaged, or not made for such input"
            )
