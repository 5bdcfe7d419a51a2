"""A recipe on a latent store: what `rectiflow train` and the demo run.

On the walk of a sample: the store says which parts made it; sample pictures are drawn with these,
and the finished model remembers where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from rectiflow.distributed.world import ALONE, World
from rectiflow.generation.frozen_parts import FrozenParts
from rectiflow.models.parts_source import PartsSource
from rectiflow.recipes.encoding import parts_of_store
from rectiflow.recipes.previews import left_to_the_first, previews
from rectiflow.training.feed import open_feed
from rectiflow.training.hooks import DrawSamples, Hook
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.recipe import TrainRecipe, refuse_uneven
from rectiflow.training.run_folder import refuse_foreign_folder

#: How long the other processes wait while the first looks at parts of any size.
_PATIENCE = timedelta(hours=2)


def train_on_store(
    recipe: TrainRecipe,
    store: Path,
    out: Path,
    *,
    parts: str | None = None,
    max_steps: int | None = None,
    until: int | None = None,
    hooks: Sequence[Hook] = (),
    world: World = ALONE,
) -> TrainResult:
    """Train on a store, or go on, as `training.loop.train` does; sample pictures are drawn too.

    `parts` is the model that has the store's autoencoder and text encoders, where they are no
    longer where they were when it was encoded. The first process of `world` looks at them and
    draws; all train.

    Raises:
        StoreError: the store is missing or damaged, or was made by other parts than are there.
        UserError, ConfigError, CheckpointError, DivergedError: as `train`.
    """
    refuse_uneven(recipe, world.num_processes)
    found: FrozenParts | None = None
    on_sample: DrawSamples | None = left_to_the_first

    def look_at_parts() -> PartsSource | None:
        nonlocal found
        refuse_foreign_folder(out)
        found = parts_of_store(store, moved_to=parts).to(world.device)
        return found.source

    def prepare_pictures() -> None:
        nonlocal on_sample
        assert found is not None
        facts = feed.facts
        on_sample = previews(recipe, found, world=facts.world, resolution_px=facts.resolution_px)

    source = world.from_first(look_at_parts, patience=_PATIENCE)
    feed = open_feed(store, recipe)
    # Only now, as large encoders take their time.
    world.from_first(prepare_pictures, patience=_PATIENCE)
    feed.facts = replace(feed.facts, parts=source)
    return train(
        recipe,
        feed,
        out,
        max_steps=max_steps,
        until=until,
        hooks=hooks,
        on_sample=on_sample,
        world=world,
    )
