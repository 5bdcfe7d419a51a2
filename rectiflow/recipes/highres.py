"""Fine-tuning of a finished model at a higher resolution and with mixed aspect ratios.

Source: arXiv 2403.03206, section 5.3.2: QK-norm is added, AdamW's epsilon falls to 1e-15, positions
are interpolated to the larger grid and extended beyond it, times are shifted by sqrt(m/n).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rectiflow.base.config import from_json, load_config
from rectiflow.base.files import read_json
from rectiflow.flow import ResolutionShift
from rectiflow.generation.model import ModelCard, read_model_card
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.model_folder import find_model_folder
from rectiflow.recipes.small import small
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid

#: Twice the side: four times the tokens, as from 256² to 512².
FACTOR = 2


def highres(model: str) -> TrainRecipe:
    """Fine-tune a shipped model by name, or that of a run's or model's folder, at twice its side.

    For a store of `rectiflow encode --resolution` twice the model's, with or without `--buckets`.

    Raises:
        UserError: there is no such model.
        ConfigError: its recipe is of another version.
    """
    folder = find_model_folder(model)
    card = read_model_card(folder)
    first, resolution_px = _first_training(folder, card), card.resolution_px * FACTOR
    return replace(
        small(f"highres-{model}", _backbone(card)),
        start_from=model,
        add_qk_norm=not card.backbone.use_qk_norm,
        formulation=card.formulation,
        shift=shift_for(card, resolution_px),
        resolution_px=resolution_px,
        batch_size=16,
        max_steps=4000,
        # The paper does not give its rate. A quarter of a first training's learns more slowly from
        # the first steps on: `experiments/2026-11-28_from_64_to_128_px`.
        optimizer=AdamW(learning_rate=first.optimizer.learning_rate, eps=1e-15),
        schedule=Trapezoid(warmup_steps=100, decay_fraction=0.4),
        sampling=SamplingDefaults.of(card.sampling),
        encoder_dropout=first.encoder_dropout,
        pooled_dropout=first.pooled_dropout,
        empty_prompt=first.empty_prompt,
        stratified_times=first.stratified_times,
        sample_prompts=first.sample_prompts,
    )


def _first_training(folder: Path, card: ModelCard) -> TrainRecipe:
    """The recipe of a run's or a shipped model; of a folder that has none, as the paper trains."""
    recipe, shipped = folder.parent / "recipe.json", folder / "card.json"
    if recipe.is_file():
        return load_config(recipe, TrainRecipe)
    if shipped.is_file():
        return from_json(TrainRecipe, read_json(shipped)["recipe"])
    return small("alone", card.backbone)


def shift_for(card: ModelCard, resolution_px: int) -> ResolutionShift:
    """A model's own shift, and what a higher resolution adds to it.

    It is the recipe's, so that training, validation and the new model's card have this one source.
    """
    # Tokens grow as pixels do.
    added = ResolutionShift.between(card.resolution_px**2, resolution_px**2)
    return ResolutionShift(alpha=card.sampling.shift).then(added)


def _backbone(card: ModelCard) -> BackboneConfig:
    """With QK-norm and a position grid of which the larger square covers what the smaller did.

    What is wider or taller than the square goes beyond, in the same steps. Both sides grow alike,
    so that the crop of the square stays in the middle to the token.
    """
    old = card.backbone
    return replace(
        old,
        use_qk_norm=True,
        base_side=old.base_side * FACTOR,
        position_side=old.position_side * FACTOR,
    )
