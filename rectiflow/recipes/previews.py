"""Sample pictures of a model while it trains, drawn with the parts that made its data.

Training only knows a function from (backbone, prompts) to pictures; this makes it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from torch import nn

from rectiflow.generation.frozen_parts import FrozenParts
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import generate
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.frame import Backbone
from rectiflow.models.text.cache import CachedConditioner, PromptEncoder
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.hooks import DrawSamples
from rectiflow.training.recipe import TrainRecipe


def previews(
    recipe: TrainRecipe, parts: FrozenParts, *, world: str | None, resolution_px: int
) -> DrawSamples | None:
    """Draws the recipe's prompts, each with the same noise every time; None if it asks for none.

    Large encoders are loaded at once, on the device where the parts are, and let go: their states
    are kept on the disk. `world` and `resolution_px` are of the store that `parts` made.
    """
    if not (recipe.sample_every and recipe.sample_prompts):
        return None
    conditioner = parts.conditioner
    if parts.source is not None:
        # Large encoders say it once, and training has the memory for itself.
        conditioner.encode(["", *recipe.sample_prompts])
        _unload(conditioner)

    def draw(backbone: nn.Module, prompts: tuple[str, ...]) -> UInt8[np.ndarray, "n h w 3"]:
        assert isinstance(backbone, Backbone)
        model = model_in_training(
            recipe,
            backbone,
            autoencoder=parts.autoencoder,
            conditioner=conditioner,
            sampling=recipe.sampling,
            world=world,
            resolution_px=resolution_px,
        )
        # The parts go to where the backbone is trained.
        images = generate(model.to(model.device), prompts, range(len(prompts)))
        if parts.source is not None:
            _unload(conditioner)  # where nothing could be kept on the disk
        return images

    return draw


def _unload(conditioner: PromptEncoder) -> None:
    if isinstance(conditioner, CachedConditioner):
        conditioner.unload()


def left_to_the_first(
    backbone: nn.Module, prompts: tuple[str, ...]
) -> UInt8[np.ndarray, "n h w 3"]:
    """What the other processes have in the place of `previews`: the first one draws."""
    raise AssertionError("the first process draws, and it has the model's other parts")


def model_in_training(
    recipe: TrainRecipe,
    backbone: Backbone,
    *,
    autoencoder: Autoencoder,
    conditioner: PromptEncoder,
    sampling: SamplingDefaults,
    world: str | None,
    resolution_px: int,
) -> Model:
    """A backbone with the parts around it that its recipe's data were made by."""
    return Model(
        name=recipe.name,
        digest="in training",
        backbone=backbone,
        formulation=recipe.formulation,
        autoencoder=autoencoder,
        conditioner=conditioner,
        settings=SamplingSettings(
            **vars(sampling),
            shift=recipe.shift.alpha,
            height_px=resolution_px,
            width_px=resolution_px,
        ),
        world=world,
        resolution_px=resolution_px,
        provenance={},
    )
