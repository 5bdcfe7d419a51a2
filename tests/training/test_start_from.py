"""A run that starts from a model has its weights, says so, and never reads it again."""

import dataclasses
from pathlib import Path

import pytest
import torch
from models.published.small_checkpoints import SMALL, random_mmdit, write_single_file
from safetensors.torch import load_file, save_file
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.files import read_json, sha256_file, write_json
from rectiflow.recipes.small import tiny
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.state import TrainState
from rectiflow.training.tensor_files import read_tensors

#: A released kind's sizes for what the feed gives.
FITTING = dataclasses.replace(SMALL["sd3-medium"], depth=1, context_dim=32, pooled_dim=24)


def run_quietly(recipe: TrainRecipe, out: Path, max_steps: int | None = None) -> TrainResult:
    return train(recipe, FakeFeed(), out, max_steps=max_steps, progress=False)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    return run_quietly(tiny_recipe(max_steps=2), tmp_path / "earlier").run


def from_run(earlier: Path, **changes: object) -> TrainRecipe:
    return tiny_recipe(start_from=str(earlier), seed=1, max_steps=4, **changes)


def test_first_weights_and_their_average_are_the_models(earlier: Path) -> None:
    recipe = from_run(earlier)
    state = TrainState.start(recipe, read_first_weights(str(earlier)))
    saved = load_file(earlier / "model" / "weights.safetensors")
    for own in (state.backbone.state_dict(), state.ema.model.state_dict()):
        assert own.keys() == saved.keys()
        assert all(torch.equal(value, saved[name]) for name, value in own.items())
    assert state.step == 0


def test_the_optimizer_works_on_the_models_weights(earlier: Path, tmp_path: Path) -> None:
    """A first step of rate zero leaves them where they are, whatever copies an optimizer keeps."""
    recipe = from_run(earlier)
    still = dataclasses.replace(
        recipe,
        max_steps=1,
        optimizer=dataclasses.replace(
            recipe.optimizer,
            learning_rate=1e-12,
            rest=dataclasses.replace(recipe.optimizer.rest, learning_rate=1e-12),
        ),
    )
    run_quietly(still, tmp_path / "run")
    after = read_tensors(tmp_path / "run" / "checkpoints" / "step_00000001" / "weights.safetensors")
    before = load_file(earlier / "model" / "weights.safetensors")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-8, rtol=0.0)


def test_checkpoints_and_model_say_where_the_weights_came_from(
    earlier: Path, tmp_path: Path
) -> None:
    result = run_quietly(from_run(earlier), tmp_path / "run")
    origin = {
        "model": str(earlier),
        "sha256": sha256_file(earlier / "model" / "weights.safetensors"),
        "provenance": read_json(earlier / "model" / "model.json")["provenance"],
    }
    assert origin["provenance"]["images_seen"] > 0
    assert read_json(result.model / "model.json")["provenance"]["start_from"] == origin
    state = read_json(result.run / "checkpoints" / "step_00000004" / "state.json")
    assert state["origin"] == origin
    assert read_json(earlier / "model" / "model.json")["provenance"]["start_from"] is None


def test_a_continued_run_does_not_read_the_model_again(earlier: Path, tmp_path: Path) -> None:
    recipe = from_run(earlier)
    whole = run_quietly(recipe, tmp_path / "whole")
    run_quietly(recipe, tmp_path / "run", max_steps=2)
    earlier.rename(tmp_path / "moved")
    continued = run_quietly(recipe, tmp_path / "run", max_steps=4)
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        first, second = (
            read_tensors(result.run / "checkpoints" / "step_00000004" / name)
            for result in (whole, continued)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    provenance = read_json(continued.model / "model.json")["provenance"]
    assert provenance["start_from"]["model"] == str(earlier)


def test_a_damaged_or_missing_model_is_told_and_binds_no_folder(
    earlier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="there is no model 'elsewhere'"):
        run_quietly(tiny_recipe(start_from="elsewhere"), out)
    weights = earlier / "model" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors is cut or damaged"):
        run_quietly(from_run(earlier), out)
    assert run_quietly(tiny_recipe(max_steps=1), out).step == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"use_qk_norm": True},
            r"is missing, the recipe's backbone needs \[.*model.json.*; to add QK-norm, set add_qk",
        ),
        ({"patch_size": 1}, r"is \[64, 16, 2, 2\], the recipe's backbone needs \[64, 16, 1, 1\]"),
    ],
)
def test_another_shape_is_told(
    earlier: Path, tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    recipe = from_run(earlier)
    other = dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, **changes))
    with pytest.raises(CheckpointError, match=f"start_from=.*{text}"):
        run_quietly(other, tmp_path / "run")


def with_qk_norm(recipe: TrainRecipe, **changes: object) -> TrainRecipe:
    backbone = dataclasses.replace(recipe.backbone, use_qk_norm=True)
    return dataclasses.replace(recipe, backbone=backbone, **changes)


def test_qk_norm_is_added_on_request(earlier: Path, tmp_path: Path) -> None:
    recipe = with_qk_norm(from_run(earlier), add_qk_norm=True)
    state = TrainState.start(recipe, read_first_weights(str(earlier)))
    saved = load_file(earlier / "model" / "weights.safetensors")
    own = state.backbone.state_dict()
    norms = own.keys() - saved.keys()
    assert norms
    assert all(name.endswith(("ln_q.weight", "ln_k.weight")) for name in norms)
    assert all(bool((own[name] == 1.0).all()) for name in norms)
    assert all(torch.equal(own[name], value) for name, value in saved.items())
    result = run_quietly(recipe, tmp_path / "run")
    origin = read_json(result.model / "model.json")["provenance"]["start_from"]
    assert (origin["model"], origin["added"]) == (str(earlier), "qk_norm")
    # The finished model has them, so the next run finds none to add.
    again = with_qk_norm(from_run(result.run), add_qk_norm=True)
    with pytest.raises(CheckpointError, match="was trained with QK-norm, so there is none to add"):
        run_quietly(again, tmp_path / "again")
    assert run_quietly(with_qk_norm(from_run(result.run)), tmp_path / "again").step == 4


def test_to_add_qk_norm_takes_a_model_and_a_backbone_that_has_it(earlier: Path) -> None:
    text = "add_qk_norm adds the norms of backbone.use_qk_norm to the model of start_from; set both"
    with pytest.raises(ConfigError, match=text):
        from_run(earlier, add_qk_norm=True)
    with pytest.raises(ConfigError, match=text):
        with_qk_norm(tiny_recipe(), add_qk_norm=True)


def test_positions_may_differ_as_they_have_no_weights(earlier: Path) -> None:
    recipe = from_run(earlier)
    backbone = dataclasses.replace(recipe.backbone, base_side=8, position_side=16)
    state = TrainState.start(
        dataclasses.replace(recipe, backbone=backbone), read_first_weights(str(earlier))
    )
    assert state.backbone.pos_embed.shape[:2] == (16, 16)


def test_an_unknown_tensor_is_told(earlier: Path, tmp_path: Path) -> None:
    path = earlier / "model" / "weights.safetensors"
    save_file(load_file(path) | {"more": torch.zeros(1)}, path)
    card = read_json(path.with_name("model.json"))
    card["sha256"][path.name] = sha256_file(path)
    write_json(path.with_name("model.json"), card)
    with pytest.raises(CheckpointError, match=r"'more' is \[1\], the recipe's backbone needs miss"):
        run_quietly(from_run(earlier), tmp_path / "run")


def test_released_weights_become_float32_with_their_own_positions(tmp_path: Path) -> None:
    model = random_mmdit(SMALL["sd3.5-medium"])
    path = write_single_file(tmp_path / "sd3.safetensors", model, dtype=torch.bfloat16)
    first = read_first_weights(str(path))
    recipe = tiny_recipe(backbone=model.config, start_from=str(path), export_layout="diffusers")
    assert first.origin_of(recipe) == {"model": str(path), "sha256": sha256_file(path)}
    state = TrainState.start(recipe, first)
    for name, value in {"pos_embed": model.pos_embed, **model.state_dict()}.items():
        for kept in (state.tensors()["weights"], state.tensors()["ema"]):
            assert kept[name].dtype == torch.float32
            assert torch.equal(kept[name], value.bfloat16().float())


def test_a_grid_that_is_kept_must_fit_and_ours_is_the_closed_form(tmp_path: Path) -> None:
    model = random_mmdit(FITTING)
    path = write_single_file(tmp_path / "sd3.safetensors", model)
    first = read_first_weights(str(path))
    larger = dataclasses.replace(FITTING, position_side=16)
    recipe = tiny_recipe(backbone=larger, start_from=str(path))
    closed = TrainState.start(dataclasses.replace(recipe, start_from=None)).backbone.pos_embed
    assert torch.equal(TrainState.start(recipe, first).backbone.pos_embed, closed)
    with pytest.raises(CheckpointError, match="position grid of 8×8, the recipe's backbone has 16"):
        TrainState.start(dataclasses.replace(recipe, export_layout="diffusers"), first)


def test_an_export_without_the_other_parts_is_told(tmp_path: Path) -> None:
    path = write_single_file(tmp_path / "sd3.safetensors", random_mmdit(FITTING))
    recipe = tiny_recipe(
        backbone=FITTING, start_from=str(path), export_layout="diffusers", max_steps=1
    )
    with pytest.raises(UserError, match="there is no .*prepared/parts with the autoencoder"):
        run_quietly(recipe, tmp_path / "run")


def test_shipped_weights_become_float32() -> None:
    first = read_first_weights("tiny")
    assert {stored.dtype for stored in first.tensors.values()} == {torch.bfloat16}
    recipe = dataclasses.replace(tiny(), start_from="tiny")
    state = TrainState.start(recipe, first)
    assert {value.dtype for value in state.backbone.state_dict().values()} == {torch.float32}
