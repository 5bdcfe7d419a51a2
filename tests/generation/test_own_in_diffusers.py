"""A model of ours, converted, is a whole pipeline: diffusers draws with it what we draw."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models.small_backbones import randomised
from safetensors.torch import save_file

from rectiflow.base.config import to_json
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.base.files import read_json, sha256_file, write_json
from rectiflow.generation.pipeline import Pipeline
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.published import convert, describe_checkpoint, open_checkpoint
from rectiflow.models.shipped import shipped_path

CONFIG = MMDiTConfig(
    depth=2, context_dim=192, pooled_dim=160, position_side=16, base_side=4, use_qk_norm=True
)
CALL = {
    "prompt": ["a photo of a red circle", 'the word "AC" in green'],
    "num_inference_steps": 6,
    "guidance_scale": 3.0,
}
WHOLE = {"mmdit", "autoencoder", "clip_l", "clip_g", "t5"}


def own_model(folder: Path, **changes: Any) -> Path:
    """A random MM-DiT of ours, otherwise described as the shipped model is."""
    card = read_json(shipped_path("tiny") / "model.json") | changes
    folder.mkdir()
    model = MMDiT(CONFIG)
    randomised(model)
    save_file(model.state_dict(), folder / "weights.safetensors")
    card["backbone"] = to_json(CONFIG) | {"kind": "MMDiTConfig"}
    card["sha256"] = {"weights.safetensors": sha256_file(folder / "weights.safetensors")}
    write_json(folder / "model.json", card)
    return folder


def noise() -> torch.Tensor:
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parity
def test_diffusers_draws_the_same_pictures(tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    own = own_model(tmp_path / "own")
    convert(own, tmp_path / "folder")
    theirs = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "folder", torch_dtype=torch.float32
    )
    theirs.set_progress_bar_config(disable=True)
    for output_type, tolerance in (("latent", 1e-4), ("np", 5e-5)):
        expected = theirs(
            **CALL,
            negative_prompt=["", ""],
            height=64,
            width=64,
            latents=noise(),
            max_sequence_length=16,
            output_type=output_type,
        ).images
        assert expected.std() > 0.1
        for path in (own, tmp_path / "folder"):
            ours = Pipeline.from_pretrained(path)
            found = ours(
                **CALL, latents=noise(), solver="euler", grid="released", output_type=output_type
            ).images
            assert abs(found - expected).max() < tolerance, path


def test_a_pipeline_keeps_its_tokenizers_and_scheduler(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    convert(own_model(tmp_path / "own"), first)
    convert(first, second)
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert Path("tokenizer_3/tokenizer.json") in files
    assert [path.relative_to(second) for path in sorted(second.rglob("*")) if path.is_file()] == (
        files
    )
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_a_folders_shift_and_lengths_are_its_own(tmp_path: Path) -> None:
    convert(own_model(tmp_path / "own"), tmp_path / "folder")
    model = Pipeline.from_pretrained(tmp_path / "folder").model
    assert model.settings.shift == 6.0
    assert model.conditioner.config.t5.length == 16
    scheduler = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    write_json(scheduler, read_json(scheduler) | {"shift": 2.0})
    assert open_checkpoint(tmp_path / "folder").shift == 2.0
    assert Pipeline.from_pretrained(tmp_path / "folder").model.settings.shift == 2.0
    for changes in ({"use_dynamic_shifting": True}, {"shift": None}, {"shift": "3"}):
        write_json(scheduler, read_json(scheduler) | changes)
        assert open_checkpoint(tmp_path / "folder").shift is None


def test_parts_that_it_was_not_trained_with_stay_out(tmp_path: Path) -> None:
    card = read_json(shipped_path("tiny") / "model.json")
    other = own_model(tmp_path / "other", text=card["text"] | {"t5": "another"})
    assert set(open_checkpoint(other).parts) == WHOLE - {"t5"}
    other = own_model(tmp_path / "alone", text={}, autoencoder={"fingerprint": "another"})
    assert set(open_checkpoint(other).parts) == {"mmdit"}
    assert open_checkpoint(other).tokenizers is None


def test_a_card_without_a_key_is_told(tmp_path: Path) -> None:
    own = own_model(tmp_path / "own")
    card = read_json(own / "model.json")
    del card["text"]
    write_json(own / "model.json", card)
    with pytest.raises(ConfigError, match="text"):
        convert(own, tmp_path / "folder")


@pytest.mark.parametrize("part", ["path", "prediction"])
def test_another_formulation_has_no_released_layout(part: str, tmp_path: Path) -> None:
    formulation = read_json(shipped_path("tiny") / "model.json")["formulation"]
    kind = {"path": "CosinePath", "prediction": "EpsPrediction"}[part]
    own = own_model(tmp_path / "own", formulation=formulation | {part: {"kind": kind}})
    with pytest.raises(UserError, match=f"has {kind} as its {part}; .* would draw noise"):
        convert(own, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert "MM-DiT, trained by rectiflow" in describe_checkpoint(own)
