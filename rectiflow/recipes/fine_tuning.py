"""`rectiflow finetune`: a model and a folder of pictures become a fine-tuned model or a LoRA.

The walk of a sample in one call: the folder is encoded by the model's own frozen parts, and the one
trainer does the rest. What comes before training lies in the run's `prepared/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

from rectiflow.base.config import load_config, save_config
from rectiflow.base.errors import UserError
from rectiflow.data.latent_store import LatentStore
from rectiflow.distributed.world import ALONE, World
from rectiflow.flow import ResolutionShift
from rectiflow.generation.frozen_parts import FrozenParts
from rectiflow.generation.model import Model, load_model
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.flops import InputSize
from rectiflow.models.lora import check_lora
from rectiflow.models.model_folder import is_own_model, is_shipped
from rectiflow.models.text.cache import CachedConditioner
from rectiflow.recipes.fine_tuning_parts import at_size, prepare
from rectiflow.recipes.fine_tuning_request import (
    FineTuning,
    Prepared,
    hash_listing,
    hash_prior,
    list_captioned,
    refuse_other,
)
from rectiflow.recipes.previews import left_to_the_first, previews
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.feed import Feed, StoreFeed
from rectiflow.training.fine_tuning import PriorPreservation
from rectiflow.training.hooks import DrawSamples, Hook
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.optimizers import AdamW
from rectiflow.training.planner import Fleet, Plan, plan_for, plan_here
from rectiflow.training.prior_feed import PriorFeed
from rectiflow.training.recipe import TrainRecipe, refuse_uneven
from rectiflow.training.run_folder import PREPARED_FOLDER, locked, refuse_foreign_folder
from rectiflow.training.schedule import Trapezoid

MAX_STEPS = 1000
#: Peak learning rates that are usual for either kind of training.
LEARNING_RATES = {"all": 1e-5, "lora": 1e-4}
#: A tenth of the pictures is held out where there are so many, but no more than the second.
LEAST_TO_HOLD_OUT, MOST_HELD_OUT = 20, 64
_PREPARED_FILE = "prepared.json"
#: How long the other processes wait for latents and prior pictures of any number.
_PREPARATION = timedelta(days=7)


def fine_tune(
    request: FineTuning,
    *,
    hooks: Sequence[Hook] = (),
    progress: bool = True,
    world: World = ALONE,
) -> TrainResult:
    """Prepare what training needs, then train; a stopped call is continued by the next one.

    The first process of `world` prepares, on its device, and draws sample pictures; all train.

    Raises:
        UserError: the folders cannot be used, the model has no such sizes, or the run was begun
            with other settings.
        CheckpointError: the model is damaged or of another family.
        ConfigError: a setting is out of range, or the batch does not divide among the processes.
        DivergedError: the loss or the gradient is not finite.
    """
    on_sample: DrawSamples | None = left_to_the_first

    def begin() -> TrainRecipe:
        nonlocal on_sample
        recipe, on_sample = _begin(request, world, progress=progress)
        return recipe

    recipe = world.from_first(begin, patience=_PREPARATION)
    return train(
        recipe,
        _open_feed(request.out / PREPARED_FOLDER, recipe),
        request.out,
        max_steps=request.max_steps,
        hooks=hooks,
        on_sample=on_sample,
        progress=progress,
        world=world,
    )


def fine_tuning_recipe(request: FineTuning, model: Model) -> TrainRecipe:
    """The recipe of a request; formulation, shift and sampling are the model's own.

    Prompts are kept whole but for one in twenty, which is left out so that guidance goes on to have
    something to contrast with. The rate stays at its peak, so that a run may be made longer.

    Raises:
        ConfigError: a setting is out of range, or a batch has no place for the prior.
    """
    usual = LEARNING_RATES["all" if request.lora is None else "lora"]
    is_pipeline = request.lora is None and not is_own_model(request.model)
    return TrainRecipe(
        name="finetune",
        seed=request.seed,
        backbone=cast(BackboneConfig, model.backbone.config),
        start_from=request.model,
        lora=request.lora,
        prior=PriorPreservation(weight=request.prior_weight) if request.has_prior else None,
        export_layout="diffusers" if is_pipeline else "own",
        formulation=model.formulation,
        shift=ResolutionShift(alpha=model.settings.shift),
        batch_size=request.batch_size,
        max_steps=request.max_steps or MAX_STEPS,
        optimizer=AdamW(learning_rate=request.learning_rate or usual, betas=(0.9, 0.999)),
        schedule=Trapezoid(warmup_steps=50, decay_fraction=0.0),
        encoder_dropout=0.0,
        empty_prompt=0.05,
        num_validation=0,
        log_every=10,
        validate_every=100,
        checkpoint_every=250,
        # A checkpoint has four times the model's size, but for a LoRA's.
        keep_last=1 if request.lora is None else 2,
        sample_every=request.sample_every if request.sample_prompts else 0,
        sample_prompts=request.sample_prompts,
        sampling=SamplingDefaults.of(model.settings),
    )


def plan_fine_tuning(
    request: FineTuning, fleet: Fleet | None, *, shard_over: int | None = None
) -> Plan:
    """What such a run will need, on accelerators or, without `fleet`, here; nothing is made.

    `request.data` is not looked at: all its pictures become squares.

    Raises:
        UserError, CheckpointError: the model is not to be had.
        ConfigError: as `fine_tuning_recipe`, `plan_for` and `plan_here`.
    """
    model = load_model(request.model, request.load)
    model = at_size(model, request.resolution_px or model.resolution_px)
    recipe = fine_tuning_recipe(request, model)
    _check_fit(model, recipe)
    side = model.resolution_px // model.autoencoder.config.downsample_factor
    num_text = model.conditioner.config.context_length
    size = InputSize(height=side, width=side, num_text=num_text)
    if fleet is None:
        return plan_here(recipe, size)
    return plan_for(recipe, size, fleet, shard_over=shard_over)


# --- before training ------------------------------------------------------------------------------


def _begin(
    request: FineTuning, world: World, *, progress: bool
) -> tuple[TrainRecipe, DrawSamples | None]:
    """Make what the run needs, or check that it is there; how to train, and to draw on the way."""
    run = request.out
    refuse_foreign_folder(run)
    _refuse_nested(run, request)
    listing = list_captioned(request.data, request.caption, "--caption 'a photo of sks dog'")
    prior = None
    if request.prior is not None:
        prior = list_captioned(
            request.prior, request.prior_prompt, "--prior-prompt 'a photo of a dog'"
        )
    request = replace(
        request,
        model=_place_of(request.model),
        load=replace(request.load, device=str(world.device)),
    )
    model = load_model(request.model, request.load)
    model = at_size(model, request.resolution_px or model.resolution_px)
    recipe = fine_tuning_recipe(request, model)
    refuse_uneven(recipe, world.num_processes)
    _check_fit(model, recipe)
    prepared = run / PREPARED_FOLDER
    wanted = Prepared(
        model=model.digest,
        data=hash_listing(listing),
        resolution_px=model.resolution_px,
        prior=hash_prior(request, prior, model),
    )
    with locked(run):
        if (prepared / _PREPARED_FILE).is_file():
            refuse_other(run, load_config(prepared / _PREPARED_FILE, Prepared), wanted)
        else:
            prepare(
                request, model, recipe, prepared, listing=listing, prior=prior, progress=progress
            )
            save_config(prepared / _PREPARED_FILE, wanted)
    store = LatentStore(prepared / "store")
    store.header.check_made_by(
        autoencoder=model.autoencoder.fingerprint(), text=model.conditioner.fingerprints()
    )
    recipe = replace(recipe, num_validation=_num_held_out(len(store)))
    parts = FrozenParts(
        autoencoder=model.autoencoder,
        conditioner=model.conditioner,
        source=model.source,
    )
    on_sample = previews(recipe, parts, world=model.world, resolution_px=model.resolution_px)
    if isinstance(model.conditioner, CachedConditioner):
        # Training has the memory for itself.
        model.conditioner.unload()
    return recipe, on_sample


def _refuse_nested(run: Path, request: FineTuning) -> None:
    for option, folder in (("--data", request.data), ("--prior", request.prior)):
        if folder is not None and run.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {run} lies in {option} {folder}, where the run's own pictures would become "
                "training data; choose a folder beside it"
            )


def _place_of(model: str) -> str:
    """An absolute path, or the name of a model that ships, so that a run may go on anywhere."""
    if is_shipped(model):
        return model
    if Path(model).exists():
        return str(Path(model).resolve())
    # Needs the public libraries of large encoders.
    from rectiflow.models.published.hub import fetch_from_hub

    return str(fetch_from_hub(model) or model)


def _check_fit(model: Model, recipe: TrainRecipe) -> None:
    """What would otherwise be told after all pictures have been encoded."""
    config = model.backbone.config
    if recipe.lora is not None:
        check_lora(config, recipe.lora.rank)
    if config.is_inpainting:
        raise UserError(
            f"{model.name} is for inpainting, and pictures with captions have no masks to train "
            "that on; give the model that it was made from"
        )
    side_px, unit_px = model.resolution_px, model.autoencoder.config.downsample_factor
    unit_px *= config.patch_size
    if side_px % unit_px or side_px > unit_px * config.position_side:
        raise UserError(
            f"--resolution is {side_px}; {model.name} takes multiples of {unit_px} up to "
            f"{unit_px * config.position_side}"
        )


# --- training -------------------------------------------------------------------------------------


def _num_held_out(num_samples: int) -> int:
    if num_samples < LEAST_TO_HOLD_OUT:
        return 0
    return min(MOST_HELD_OUT, num_samples // 10)


def _open_feed(prepared: Path, recipe: TrainRecipe) -> Feed:
    store = LatentStore(prepared / "store")
    if recipe.prior is None:
        return StoreFeed(store, recipe)
    return PriorFeed(store, LatentStore(prepared / "prior_store"), recipe)
