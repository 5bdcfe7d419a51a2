"""Batches with a fixed share of prior samples: pictures of the class beside those of the instance.

On the walk of a sample: two stores -> here -> `training.loop`. Source: arXiv 2208.12242, section
3.3, whose sum of two losses is here one weighted mean over the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from rectiflow.base.errors import ConfigError
from rectiflow.base.seeds import derive_seed
from rectiflow.data.latent_store import LatentStore
from rectiflow.data.loader import Loader
from rectiflow.data.records import Batch
from rectiflow.training.feed import Feed, StoreFeed
from rectiflow.training.recipe import TrainRecipe


class PriorFeed(Feed):
    """The instance's samples first, then the prior's, in every batch; the instance is validated.

    Args:
        instance: the store of the pictures to learn; some of them are held out.
        prior: the store of the class's pictures, made by the same encoders; none is held out.
        recipe: with its `prior`.

    Raises:
        ConfigError: the stores' rows have different shapes, or do not fit the recipe's backbone.
        StoreError: the prior's store was made by other encoders.
    """

    def __init__(self, instance: LatentStore, prior: LatentStore, recipe: TrainRecipe) -> None:
        assert recipe.prior is not None
        prior.header.check_made_by(
            autoencoder=instance.header.autoencoder, text=instance.header.text
        )
        shapes = [sorted(store.latent_shapes.values()) for store in (prior, instance)]
        if shapes[0] != shapes[1] or len(shapes[0]) > 1:
            raise ConfigError(
                f"the prior's latents are {_spell(shapes[0])}, the instance's {_spell(shapes[1])}; "
                "encode both at one resolution, without buckets"
            )
        num_prior = recipe.prior.count_in(recipe.batch_size)
        num_instance = recipe.batch_size - num_prior
        own = StoreFeed(instance, replace(recipe, batch_size=num_instance, prior=None))
        self._instance = own
        self._prior = Loader(
            prior,
            batch_size=num_prior,
            seed=derive_seed(recipe.seed, "prior"),
            empty_prompt=recipe.empty_prompt,
        )
        # (1/B) Σ w·loss = (1/n) Σ of the instance + weight·(1/m) Σ of the prior.
        size = self.batch_size = recipe.batch_size
        self.weights = torch.cat(
            [
                torch.full((num_instance,), size / num_instance),
                torch.full((num_prior,), recipe.prior.weight * size / num_prior),
            ]
        )
        both = f"{instance.fingerprint}|{prior.fingerprint}"
        self.facts = replace(own.facts, fingerprint=hashlib.sha256(both.encode()).hexdigest())
        self.validation = own.validation

    def batch_at(self, step: int) -> Batch:
        first, second = self._instance.batch_at(step), self._prior.batch_at(step)
        return Batch(
            x0_mean=torch.cat([first.x0_mean, second.x0_mean]),
            x0_logvar=torch.cat([first.x0_logvar, second.x0_logvar]),
            encoded_text={
                name: torch.cat([column, second.encoded_text[name]])
                for name, column in first.encoded_text.items()
            },
            indices=torch.cat([first.indices, second.indices]),
            keys=torch.cat([first.keys, second.keys]),
            positions=torch.cat([first.positions, second.positions]),
            weights=self.weights,
        )


def _spell(shapes: Sequence[tuple[int, int, int]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
