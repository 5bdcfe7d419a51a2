"""CLIP as a measuring instrument: pictures and texts → features of one space.

Two makers: the embedded pair (image tower and `clip_g`), trained on the embedded world and good for
its pictures alone, and any CLIP model in a local folder, for real pictures. The paper's numbers use
CLIP ViT-L/14 (arXiv 2403.03206, section 5.1). Source: arXiv 2103.00020.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rectiflow.base.errors import CheckpointError
from rectiflow.base.files import read_json
from rectiflow.data.pixels import centered_square, crop_and_resize
from rectiflow.data.records import images_from_pixels
from rectiflow.evaluation.features import Features
from rectiflow.models.fingerprint import update_with_weights
from rectiflow.models.pretrained import load_pretrained
from rectiflow.models.shipped import load_conditioner, load_image_tower
from rectiflow.models.text.conditioner import TextConditioner
from rectiflow.models.text.loading import load_tokenizer
from rectiflow.models.vision.image_tower import ImageTower

#: Rows that run at once: enough to keep a CPU busy, little enough for ViT-L on any machine.
BATCH_SIZE = 64
_HASH_DIGITS = 12


@runtime_checkable
class ClipEmbedder(Protocol):
    """Pictures and texts to features whose cosine is the CLIP similarity.

    Law: a row depends on its own picture or text alone, up to rounding.
    """

    @property
    def backbone(self) -> str:
        """Name of the model, with a hash of the weights that were used."""
        ...

    def embed_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Features: ...

    def embed_texts(self, texts: Sequence[str]) -> Features: ...


class EmbeddedClip:
    """The image tower and the `clip_g` encoder that were trained side by side.

    Raises:
        ValueError: the conditioner was loaded without `clip_g`.
    """

    def __init__(self, tower: ImageTower, conditioner: TextConditioner) -> None:
        if "clip_g" not in conditioner.encoders:
            raise ValueError(
                "the conditioner has no clip_g, which the image tower was trained beside; load it "
                'with encoders=["clip_g"]'
            )
        self.tower = tower
        self.conditioner = conditioner
        digest = hashlib.sha256(conditioner.fingerprints()["clip_g"].encode())
        update_with_weights(digest, tower)
        self.backbone = f"embedded CLIP @{digest.hexdigest()[:_HASH_DIGITS]}"

    def embed_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Features:
        """Features of pictures of any size: the middle square, scaled to the tower's side."""
        return _embed_images(images, self.tower.image_size_px, self.tower.project, self.backbone)

    def embed_texts(self, texts: Sequence[str]) -> Features:
        """Features of texts; what goes beyond the encoder's length is cut."""
        return Features(
            vectors=self.conditioner.encode(texts).clip_g.pooled, backbone=self.backbone
        )


class PretrainedClip:
    """A transformers `CLIPModel` with its tokenizer and its pictures' mean and std, frozen."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)
        digest = hashlib.sha256()
        update_with_weights(digest, model)
        self.backbone = f"{name} @{digest.hexdigest()[:_HASH_DIGITS]}"

    def embed_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Features:
        """Features of pictures of any size: the middle square, scaled to the model's side."""
        side_px = self.model.config.vision_config.image_size
        return _embed_images(images, side_px, self._project, self.backbone)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Features:
        """Features of texts; what goes beyond the model's length is cut."""
        if isinstance(texts, str):
            raise TypeError(f"texts are a list of strings, got the string {texts!r:.60}")
        parts: list[Tensor] = []
        for start in range(0, len(texts), BATCH_SIZE):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH_SIZE]),
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            parts.append(output.pooler_output.float().cpu())
        return Features(vectors=_join(parts, "text"), backbone=self.backbone)

    @torch.no_grad()
    def _project(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        normalised = ((images + 1.0) / 2.0 - self._mean) / self._std
        like = self.model.visual_projection.weight
        output = self.model.get_image_features(normalised.to(like.device, like.dtype))
        return output.pooler_output.float().cpu()


def load_embedded_clip() -> EmbeddedClip:
    """The pair that ships with the package.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return EmbeddedClip(load_image_tower(), load_conditioner(["clip_g"]))


def load_clip_folder(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PretrainedClip:
    """A CLIP model that transformers saved, with its tokenizer; nothing is downloaded.

    Pictures are normalised as the folder's image processor states, or as in the published CLIP
    where it holds none.

    Raises:
        UserError: the folder lacks a config or tokenizer.
        CheckpointError: weights are damaged, or lack tensors of the model, or the image processor's
            config is no such.
    """
    folder = Path(folder)
    model = load_pretrained(CLIPModel, folder, dtype).to(device)
    tokenizer = load_tokenizer(folder)
    mean, std = _picture_statistics(folder)
    return PretrainedClip(model, tokenizer, name=folder.resolve().name, mean=mean, std=std)


def _picture_statistics(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            written = read_json(folder / file)
            stated = written.get("image_processor", written) if isinstance(written, dict) else None
            if not isinstance(stated, dict):
                raise CheckpointError(f"{folder / file} holds no JSON object; fetch it again")
            mean, std = (stated.get(name) for name in ("image_mean", "image_std"))
            if _is_color(mean) and _is_color(std) and min(std) > 0:
                return mean, std
            if not mean is std is None:
                raise CheckpointError(
                    f"{folder / file} has image_mean={mean!r:.40} and image_std={std!r:.40}; both "
                    "need three numbers, the latter above 0; fetch it again"
                )
    return OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def _is_color(value: Any) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(each, int | float) and math.isfinite(each) for each in value)
    )


def _embed_images(
    images: UInt8[np.ndarray, "n h w 3"],
    side_px: int,
    project: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]],
    backbone: str,
) -> Features:
    parts: list[Tensor] = []
    crop_px = centered_square(*images.shape[1:3])
    for start in range(0, len(images), BATCH_SIZE):
        # Bicubic, as CLIP saw its pictures in training.
        pixels = [
            crop_and_resize(image, crop_px, (side_px, side_px), resampling=Image.Resampling.BICUBIC)
            for image in images[start : start + BATCH_SIZE]
        ]
        parts.append(project(images_from_pixels(pixels)))
    return Features(vectors=_join(parts, "picture"), backbone=backbone)


def _join(parts: Sequence[Tensor], kind: str) -> Tensor:
    if not parts:
        raise ValueError(f"there is no {kind} to embed; give at least one")
    return torch.cat(list(parts))
