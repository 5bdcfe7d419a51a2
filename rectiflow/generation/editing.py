"""Pictures that start from a picture: image to image, and inpainting under a mask.

On the walk of a prompt beside the noise. An `Edit` is what the user gives; `encode_edit` makes of
it, once for all pictures of a call, what the stages need: latents, mask, where the grid begins.
Source: arXiv 2108.01073 (image to image); grid, blending and channels as diffusers' SD3 pipelines.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rectiflow.base.config import LATER
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.data.records import images_from_pixels
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.models.autoencoder import tiling
from rectiflow.models.frame import Backbone
from rectiflow.models.inpainting import InpaintingNetwork
from rectiflow.sampling import Backbone as Network
from rectiflow.sampling import InpaintingSolver, Solver, noisy_on_line

#: From here on a mask's pixel counts as one to paint, where there are only the two.
HALF = 0.5
#: The part of the steps that is taken unless told otherwise, as in diffusers' SD3 pipelines.
STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class PictureReference:
    """A picture by its file's name, "" where it came from memory, and the hash of its pixels."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class EditReference:
    """An edit as it stands in a picture's metadata, all of it but the pixels."""

    source: PictureReference
    strength: float
    mask: PictureReference | None = field(default=None, metadata=LATER)
    keep_source: bool = field(default=True, metadata=LATER)


# Arrays have no equality that is true or false, so edits are equal where they are the same.
@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """The picture that drawing starts from, how far it may go, and where.

    `source` is uint8 [h w 3] of the size that is drawn. `strength` is the part of the steps that
    are taken, above 0 up to 1; at 1 drawing starts from pure noise, as from text alone. `mask`,
    uint8 (0 to 255) or float (0 to 1) [h w], is white where the picture is painted anew and black
    where it stays; grey mixes. With a mask, `keep_source` puts the source's own pixels back in the
    end, which latents would not keep; without, all pixels come from the decoder. The names are
    those of their files, for metadata.

    Raises:
        ConfigError: one of them is of another type, size or range.
    """

    source: NDArray[Any]
    strength: float = STRENGTH
    mask: NDArray[Any] | None = None
    keep_source: bool = True
    source_name: str = ""
    mask_name: str = ""

    def __post_init__(self) -> None:
        source, mask = self.source, self.mask
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ConfigError(
                f"source is {source.dtype} {list(source.shape)}; give a picture as uint8 [h w 3]"
            )
        if not 0.0 < self.strength <= 1.0:
            raise ConfigError(
                f"strength={self.strength} must be above 0 (the source as it is) and at most 1 "
                "(nothing of it); 0.3 to 0.8 is usual"
            )
        if mask is not None:
            _check_mask(mask, source.shape[:2])
        elif not self.keep_source:
            raise ConfigError("keep_source=False says nothing without a mask; leave it out")

    @property
    def weights(self) -> Float[np.ndarray, "h w"] | None:
        """The mask from 0 (stays) to 1 (is painted), float32."""
        if self.mask is None:
            return None
        scale = 255.0 if self.mask.dtype == np.uint8 else 1.0
        return self.mask.astype(np.float32) / np.float32(scale)

    @property
    def reference(self) -> EditReference:
        """What metadata say of it."""
        return EditReference(
            source=PictureReference(name=self.source_name, sha256=hash_pixels(self.source)),
            strength=self.strength,
            mask=None
            if self.mask is None
            else PictureReference(name=self.mask_name, sha256=hash_pixels(self.mask)),
            keep_source=self.keep_source,
        )

    def finish(self, drawn: NDArray[Any]) -> NDArray[Any]:
        """Drawn pictures [n h w 3] with the source's pixels where the mask keeps them.

        They are bytes, or floats from 0 to 1, and stay so.
        """
        weights = self.weights
        if weights is None or not self.keep_source:
            return drawn
        weights = weights[..., None]
        is_bytes = drawn.dtype == np.uint8
        source = self.source if is_bytes else self.source / np.float32(255.0)
        mixed = weights * drawn + (1.0 - weights) * source
        return np.rint(mixed).astype(np.uint8) if is_bytes else mixed.astype(drawn.dtype)


@dataclass(frozen=True, kw_only=True)
class EncodedEdit:
    """An edit in latents, for a batch of any size: what `draw_latents` starts from.

    `mask` is 1 where latents are painted; `masked_latents` are those of the source with that
    region blanked, for networks that are told, where there are any.
    """

    x0: Float[Tensor, "1 c h w"]
    strength: float
    mask: Float[Tensor, "1 1 h w"] | None = None
    masked_latents: Float[Tensor, "1 c h w"] | None = None

    def network(self, backbone: Backbone) -> Network:
        """The backbone as a network of z_t alone, told the mask if it is one for inpainting."""
        if not backbone.config.is_inpainting:
            return backbone
        assert self.mask is not None
        assert self.masked_latents is not None
        return InpaintingNetwork(
            backbone=backbone,
            # Such networks are trained with masks of black and white.
            mask=(self.mask >= HALF).to(self.mask.dtype),
            masked_latents=self.masked_latents,
        )

    def begin(
        self,
        backbone: Backbone,
        solver: Solver,
        start: Float[Tensor, "b c h w"],
        eps: Float[Tensor, "b c h w"],
        times: Float[Tensor, " n"],
        *,
        num_resting_steps: int,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " m"], Solver]:
        """Where integration begins, at which times it stops, and by which solver.

        `start` is the place of pure noise at times[0], where strength 1 begins. Steps that rest do
        so where the whole grid has them: those before the first step taken are gone anyway. A
        network that is told the mask needs no blending; around any other the solver blends.
        """
        first = first_step(len(times) - 1, self.strength)
        if self.strength < 1.0:
            start = noisy_on_line(self.x0, eps, times[first])
        times = times[max(first, num_resting_steps) :]
        if self.mask is not None and not backbone.config.is_inpainting:
            solver = InpaintingSolver(solver, x0=self.x0, eps=eps, mask=self.mask)
            start = solver.keep(start, times[0])
        return start, times, solver


def hash_pixels(pixels: NDArray[Any]) -> str:
    """SHA-256 of a picture's type, shape and values, whatever file they came from."""
    digest = hashlib.sha256(f"{pixels.dtype}:{list(pixels.shape)}|".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def first_step(num_steps: int, strength: float) -> int:
    """The index, in a grid of num_steps steps, of the first that is taken.

    n − min(n·strength, n), rounded down, in floats as diffusers has it: 50 steps at strength 0.8
    begin with the step 10.

    Raises:
        UserError: none is taken.
    """
    first = int(num_steps - min(num_steps * strength, num_steps))
    if first >= num_steps:
        raise UserError(
            f"strength={strength} leaves none of {num_steps} steps; give a greater one, 0.3 to 0.8 "
            "is usual"
        )
    return first


def check_edit(model: Model, edit: Edit | None, settings: SamplingSettings) -> None:
    """Pass if the model can draw pictures of these settings from this edit, or from none.

    Raises:
        UserError: it cannot; the text says what is allowed.
    """
    models = [model] if model.weaker is None else [model, model.weaker]
    for asked in models:
        if asked.backbone.config.is_inpainting and (edit is None or edit.mask is None):
            raise UserError(
                f"{asked.name} paints into pictures and was given no "
                f"{'picture' if edit is None else 'mask'}; give an edit with a source and a mask "
                "(--image, --mask), all white for a whole new picture"
            )
    if edit is None:
        return
    height_px, width_px = edit.source.shape[:2]
    if (height_px, width_px) != (settings.height_px, settings.width_px):
        raise UserError(
            f"the source is {width_px}×{height_px} px, the settings draw {settings.width_px}×"
            f"{settings.height_px} px; resize it, or set height_px and width_px to its size"
        )
    first_step(settings.num_steps, edit.strength)


@torch.inference_mode()
def encode_edit(model: Model, edit: Edit) -> EncodedEdit:
    """The edit in the model's latents: the posterior's mean, so that nothing is drawn by lot.

    A latent is painted as much as the whitest of its pixels, so that no stroke is too thin.
    """
    images = images_from_pixels([edit.source]).to(model.device)
    encoded = EncodedEdit(x0=_encode(model, images), strength=edit.strength)
    weights = edit.weights
    if weights is None:
        return encoded
    pixels = torch.from_numpy(weights)[None, None].to(model.device)
    painters = [one for one in (model, model.weaker) if one and one.backbone.config.is_inpainting]
    return replace(
        encoded,
        mask=F.max_pool2d(pixels, model.autoencoder.config.downsample_factor),
        # Blank is grey, the middle of [−1, 1].
        masked_latents=_encode(model, images * (pixels < HALF)) if painters else None,
    )


def _encode(model: Model, images: Float[Tensor, "1 3 H W"]) -> Float[Tensor, "1 c h w"]:
    """In float32 whatever the backbone computes in, a large source in strips."""
    with torch.autocast(images.device.type, enabled=False):
        return tiling.encode(model.autoencoder, images).mean


def _check_mask(mask: NDArray[Any], size_px: tuple[int, ...]) -> None:
    is_bytes = mask.dtype == np.uint8
    if not is_bytes and not np.issubdtype(mask.dtype, np.floating):
        raise ConfigError(
            f"mask is {mask.dtype}; give uint8 from 0 to 255, or floats from 0 to 1 (1 is painted)"
        )
    if mask.shape != size_px:
        raise ConfigError(
            f"mask is {list(mask.shape)}, the source {list(size_px)}; give a mask [h w] of the "
            "source's size"
        )
    low, high = float(mask.min()), float(mask.max())
    if not is_bytes and not (math.isfinite(low + high) and low >= 0.0 and high <= 1.0):
        raise ConfigError(
            f"mask holds floats from {low:g} to {high:g}; they must be from 0 (stays) to 1 "
            "(is painted)"
        )
    if high < HALF * (255.0 if is_bytes else 1.0):
        raise ConfigError(
            f"mask is empty: its whitest pixel is {high:g} of {255 if is_bytes else 1}; make white "
            "what is to be painted, or leave the mask out for the whole picture"
        )
