"""A run that trains a LoRA keeps its base, resumes exactly, and hands over the LoRA it averaged."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.files import read_json, sha256_file, write_json
from rectiflow.generation.model import load_model
from rectiflow.models.lora import merge, read_lora
from rectiflow.training.fine_tuning import LoraTraining, PriorPreservation
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, forward, train_step
from rectiflow.training.tensor_files import read_tensors

BASE = tiny_recipe(depth=2, max_steps=2)


def run_quietly(recipe: TrainRecipe, out: Path, max_steps: int | None = None) -> TrainResult:
    return train(recipe, FakeFeed(), out, max_steps=max_steps, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_quietly(BASE, tmp_path_factory.mktemp("base") / "run").run


def lora_recipe(base: Path, **changes: object) -> TrainRecipe:
    settings = {
        "start_from": str(base),
        "lora": LoraTraining(rank=2),
        "seed": 1,
        "max_steps": 4,
        "optimizer": AdamW(learning_rate=1e-2),
        "checkpoint_every": 2,
        "validate_every": 0,
    }
    return tiny_recipe(depth=2, **(settings | changes))


def start(recipe: TrainRecipe) -> TrainState:
    assert recipe.start_from is not None
    return TrainState.start(recipe, read_first_weights(recipe.start_from))


@pytest.mark.parametrize("hold_base", ["fp32", "bf16"])
def test_only_the_lora_moves_and_is_averaged(base: Path, hold_base: str) -> None:
    recipe = lora_recipe(base, lora=LoraTraining(rank=2, hold_base=hold_base))
    state, feed = start(recipe), FakeFeed()
    before = {n: v.clone() for n, v in state.backbone.state_dict().items()}
    untrained = {n: v.clone() for n, v in state.tensors()["ema"].items()}
    for step in range(3):
        assert train_step(state, feed.batch_at(step), recipe).is_finite
    tensors = state.tensors()
    updates = tensors["weights"].keys()
    assert updates == tensors["ema"].keys()
    assert all(name.rpartition(".")[2].startswith("lora_") for name in updates)
    states = {name.split(".", 1)[-1] for name in tensors["optimizer"]} - {"num_steps"}
    assert states == updates
    after = state.backbone.state_dict()
    for name, value in before.items():
        if name not in updates:
            assert torch.equal(after[name], value), name
    moved = [n for n in updates if not torch.equal(tensors["ema"][n], untrained[n])]
    assert len(moved) > len(updates) / 2
    # The average shares the frozen weights, and so takes next to no memory.
    ours, average = (dict(m.named_parameters()) for m in (state.backbone, state.ema.model))
    assert all((ours[n] is average[n]) == (n not in updates) for n in ours)


def test_the_first_loss_is_the_bases(base: Path) -> None:
    recipe = lora_recipe(base)
    plain = load_first(base)
    example = draw(FakeFeed().batch_at(0), recipe)
    with torch.no_grad():
        assert torch.equal(
            forward(start(recipe).backbone, example, recipe).per_sample,
            forward(plain, example, recipe).per_sample,
        )


def load_first(base: Path) -> torch.nn.Module:
    return TrainState.start(BASE, read_first_weights(str(base))).backbone


def test_resume_is_exact_and_the_export_is_the_average(base: Path, tmp_path: Path) -> None:
    recipe = lora_recipe(base)
    whole = run_quietly(recipe, tmp_path / "whole")
    run_quietly(recipe, tmp_path / "run", max_steps=2)
    continued = run_quietly(recipe, tmp_path / "run", max_steps=4)
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        first, second = (
            read_tensors(result.run / "checkpoints" / "step_00000004" / name)
            for result in (whole, continued)
        )
        assert all(torch.equal(first[key], second[key]) for key in first | second)
    average = read_tensors(whole.run / "checkpoints" / "step_00000004" / "ema.safetensors")
    plain, layered = load_first(base), start(recipe)
    for name, value in layered.tensors()["ema"].items():
        value.copy_(average[name])
    example = draw(FakeFeed().batch_at(0), recipe)
    for file in ("lora.safetensors", "lora_kohya.safetensors"):
        lora = read_lora(whole.model / file, BASE.backbone)
        assert lora.rank == 2
        merge(plain, [(lora, 1.0 if file == "lora.safetensors" else -1.0)])
        if file == "lora.safetensors":
            with torch.no_grad():
                found = forward(plain, example, recipe).per_sample
                expected = forward(layered.ema.model, example, recipe).per_sample
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, value in load_first(base).state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    provenance = read_json(whole.model / "provenance.json")
    assert provenance["start_from"] == read_first_weights(str(base)).origin_of(recipe)
    with pytest.raises(UserError, match=r"holds a LoRA.*--lora .*model/lora.safetensors"):
        load_model(whole.run)


def test_another_base_is_told(base: Path, tmp_path: Path) -> None:
    other = run_quietly(BASE, tmp_path / "other").run
    recipe = lora_recipe(other)
    run_quietly(recipe, tmp_path / "run", max_steps=2)
    weights = other / "model" / "weights.safetensors"
    save_file({n: v + 1 for n, v in load_file(weights).items()}, weights)
    card = read_json(weights.with_name("model.json"))
    card["sha256"][weights.name] = sha256_file(weights)
    write_json(weights.with_name("model.json"), card)
    with pytest.raises(CheckpointError, match="is not the model that the run was begun with"):
        run_quietly(recipe, tmp_path / "run")


def test_the_recipe_goes_through_json(base: Path) -> None:
    recipe = lora_recipe(base, prior=PriorPreservation(share=0.25), export_layout="diffusers")
    assert from_json(TrainRecipe, to_json(recipe)) == recipe
    usual = dataclasses.replace(recipe, lora=None, prior=None, export_layout="own")
    assert not {"lora", "prior", "export_layout"} & to_json(usual).keys()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda: LoraTraining(rank=0), "lora.rank is 0; it must be at least 1"),
        (lambda: PriorPreservation(share=1.0), r"prior.share is 1.0; give a part of the batch"),
        (lambda: PriorPreservation(weight=-1.0), "prior.weight is -1.0; give a number"),
        (lambda: tiny_recipe(lora=LoraTraining(rank=1)), "lora is set and start_from is not"),
        (
            lambda: tiny_recipe(prior=PriorPreservation(), batch_size=1),
            "batch_size is 1, of which prior.share 0.5 takes 1",
        ),
    ],
)
def test_settings_that_cannot_be(change, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        change()


def test_a_share_is_rounded_but_never_nothing() -> None:
    prior = PriorPreservation(share=0.25)
    assert [prior.count_in(size) for size in (2, 4, 6, 8)] == [1, 1, 2, 2]
