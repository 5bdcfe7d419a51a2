"""A run that starts from a model has its weights, says so, and never reads it again."""

import dataclasses
from pathlib import Path

import pytest
import torch
from models.published.small_checkpoints import SMALL, random_mmdit, write_single_file
from safetensors.torch import load_file, save_file
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import read_json, sha256_file, write_json
from rectiflow.training.checkpoint import read_tensors
from rectiflow.training.loop import TrainResult, train
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.state import TrainState

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
    }
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
        ({"use_qk_norm": True}, r"is missing, the recipe's backbone needs \[.*model.json"),
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
    assert first.origin == {"model": str(path), "sha256": sha256_file(path)}
    assert {tensor.dtype for tensor in first.tensors.values()} == {torch.float32}
    recipe = tiny_recipe(backbone=model.config, start_from=str(path), export_layout="diffusers")
    state = TrainState.start(recipe, first)
    for name, value in {"pos_embed": model.pos_embed, **model.state_dict()}.items():
        for kept in (state.tensors()["weights"], state.tensors()["ema"]):
            assert torch.equal(kept[name], value.bfloat16().float())


def test_an_export_without_the_other_parts_is_told(tmp_path: Path) -> None:
    path = write_single_file(tmp_path / "sd3.safetensors", random_mmdit(FITTING))
    recipe = tiny_recipe(
        backbone=FITTING, start_from=str(path), export_layout="diffusers", max_steps=1
    )
    with pytest.raises(UserError, match="prepared/parts is gone"):
        run_quietly(recipe, tmp_path / "run")


def test_shipped_weights_become_float32() -> None:
    assert {t.dtype for t in read_first_weights("tiny").tensors.values()} == {torch.float32}
