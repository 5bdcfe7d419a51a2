"""Prior preservation: a fixed share of every batch, and the sum of two mean losses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data.parts import HashedText, encode, make_folder
from training.fake_feed import tiny_recipe

from rectiflow.base.errors import ConfigError, DivergedError, StoreError
from rectiflow.data.latent_store import LatentStore
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.training.failure import replay
from rectiflow.training.feed import StoreFeed, open_feed
from rectiflow.training.fine_tuning import PriorPreservation
from rectiflow.training.loop import train
from rectiflow.training.prior_feed import PriorFeed
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, forward

BACKBONE = MMDiTConfig(depth=1, context_dim=20, pooled_dim=16, position_side=8, base_side=4)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentStore, LatentStore]:
    folder = tmp_path_factory.mktemp("stores")
    encode(make_folder(folder / "instance", 5), folder / "instance_store")
    encode(make_folder(folder / "prior", 3), folder / "prior_store")
    return LatentStore(folder / "instance_store"), LatentStore(folder / "prior_store")


def recipe(**changes: object) -> TrainRecipe:
    prior = PriorPreservation(share=0.25, weight=3.0)
    settings = {"backbone": BACKBONE, "batch_size": 8, "num_validation": 1, "prior": prior}
    return tiny_recipe(**(settings | changes))


def feed(stores: tuple[LatentStore, LatentStore], chosen: TrainRecipe) -> PriorFeed:
    return PriorFeed(*stores, chosen)


def test_every_batch_has_its_share_and_its_loss_is_the_sum_of_both_means(stores) -> None:
    chosen = recipe()
    batches = feed(stores, chosen)
    state = TrainState.start(chosen)
    for parameter in state.backbone.parameters():  # where nothing is zero, losses differ
        torch.nn.init.normal_(parameter, std=0.1)
    alone = StoreFeed(stores[0], replace(chosen, batch_size=6))
    for step in range(3):
        batch = batches.batch_at(step)
        instance = alone.batch_at(step)
        assert torch.equal(batch.x0_mean[:6], instance.x0_mean)
        assert torch.equal(batch.keys[:6], instance.keys)
        assert len(batch) == 8
        assert len(set(batch.keys.tolist())) == 8
        with torch.no_grad():
            found = forward(state.backbone, draw(batch, chosen), chosen)
            plain = forward(state.backbone, draw(replace(batch, weights=None), chosen), chosen)
        expected = plain.per_sample[:6].mean() + 3.0 * plain.per_sample[6:].mean()
        torch.testing.assert_close(found.loss, expected)


def test_the_prior_goes_through_all_its_pictures(stores) -> None:
    batches = feed(stores, recipe())
    seen = torch.cat([batches.batch_at(step).indices[6:] for step in range(3)])
    assert seen.bincount(minlength=3).tolist() == [2, 2, 2]


def test_the_parts_of_processes_are_the_batch_and_weigh_the_same(stores) -> None:
    batches = feed(stores, recipe())
    whole = batches.batch_at(1)
    parts = [batches.shard(rank, 4).batch_at(1) for rank in range(4)]
    for name in ("keys", "x0_mean", "weights"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))
    with pytest.raises(ConfigError, match="batch_size 8 does not divide among 3 processes"):
        batches.shard(0, 3)


def test_held_out_samples_are_the_instances_and_plain(stores) -> None:
    batches = feed(stores, recipe())
    alone = StoreFeed(stores[0], recipe())
    assert len(batches.validation) == 1
    assert batches.validation[0].weights is None
    assert torch.equal(batches.validation[0].indices, alone.validation[0].indices)


def test_facts_tell_either_store_from_another(stores) -> None:
    both = feed(stores, recipe()).facts
    swapped = PriorFeed(stores[1], stores[0], recipe()).facts
    assert len({both.fingerprint, swapped.fingerprint, stores[0].fingerprint}) == 3
    assert both.latent_shapes == tuple(stores[0].latent_shapes.values())


def test_a_failed_step_is_replayed_with_its_weights(stores, tmp_path: Path) -> None:
    chosen = recipe(max_steps=1)
    batches = feed(stores, chosen)
    batches.batch_at = broken(batches.batch_at(0))
    with pytest.raises(DivergedError, match="the loss is nan"):
        train(chosen, batches, tmp_path / "run", progress=False)
    assert not replay(tmp_path / "run" / "failure_step_00000001").is_finite
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run" / "failure_step_00000001" / "batch.safetensors")
    assert torch.equal(kept["weights"], batches.batch_at(0).weights)


def broken(batch):
    batch.x0_mean[0, 0, 0, 0] = float("nan")
    return lambda step: batch


def test_stores_that_do_not_go_together_are_refused(stores, tmp_path: Path) -> None:
    pictures = make_folder(tmp_path / "pictures", 1)
    encode(pictures, tmp_path / "smaller", resolution_px=16)
    with pytest.raises(ConfigError, match=r"the prior's latents are \[16, 2, 2\].*one resolution"):
        feed((stores[0], LatentStore(tmp_path / "smaller")), recipe())
    encode(pictures, tmp_path / "other", conditioner=HashedText("other"))
    with pytest.raises(StoreError, match="was encoded by another text encoder"):
        feed((stores[0], LatentStore(tmp_path / "other")), recipe())


def test_one_store_alone_has_no_prior(stores: tuple[LatentStore, LatentStore]) -> None:
    with pytest.raises(ConfigError, match="prior mixes in samples of a second store, and one is"):
        open_feed(stores[0].path, recipe())
