"""Sample pictures of a model while it trains, drawn with the parts that ship.

Training only knows a function from (backbone, prompts) to pictures; this makes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import nn

from rectiflow.data.store_format import read_header
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import generate
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.frame import Backbone
from rectiflow.models.shipped import load_autoencoder, load_conditioner
from rectiflow.models.text.conditioner import TextConditioner
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.hooks import DrawSamples
from rectiflow.training.recipe import TrainRecipe


def previews(recipe: TrainRecipe, store: Path) -> DrawSamples | None:
    """Draws the recipe's prompts, each with the same noise every time; None if it asks for none.

    Raises:
        StoreError: the store is missing or damaged, or was made by other parts than those that
            ship, so that pictures could not be decoded.
    """
    if not (recipe.sample_every and recipe.sample_prompts):
        return None
    header = read_header(store)
    autoencoder, conditioner = load_autoencoder(), load_conditioner()
    header.check_made_by(autoencoder=autoencoder.fingerprint(), text=conditioner.fingerprints())
    size_px, world = header.resolution_px, header.world

    def draw(backbone: nn.Module, prompts: tuple[str, ...]) -> UInt8[np.ndarray, "n h w 3"]:
        assert isinstance(backbone, Backbone)
        model = model_in_training(
            recipe,
            backbone,
            autoencoder=autoencoder,
            conditioner=conditioner,
            sampling=recipe.sampling,
            world=world,
            resolution_px=size_px,
        )
        # The parts that ship go to where the backbone is trained.
        return generate(model.to(model.device), prompts, range(len(prompts)))

    return draw


def model_in_training(
    recipe: TrainRecipe,
    backbone: Backbone,
    *,
    autoencoder: Autoencoder,
    conditioner: TextConditioner,
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
