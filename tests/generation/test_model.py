"""Models load by name or folder; whatever does not belong together is told, not drawn with."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone
from safetensors.torch import load_file, save_file
from tiny_model import tiny_autoencoder, tiny_backbone, tiny_conditioner, tiny_model

from rectiflow.base.config import to_json
from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.files import read_json, sha256_file, write_json
from rectiflow.generation import frozen_parts
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.metadata import picture_metadata
from rectiflow.generation.model import (
    ModelCard,
    load_model,
    read_model_card,
    with_weaker,
)
from rectiflow.generation.settings import CardSampling
from rectiflow.generation.text_to_image import generate
from rectiflow.models.model_folder import find_model_folder
from rectiflow.sampling import AutoGuidance


@pytest.fixture(autouse=True)
def _parts_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_parts, "load_autoencoder", tiny_autoencoder)
    monkeypatch.setattr(frozen_parts, "load_prompt_encoder", tiny_conditioner)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with an exported model of depth 2."""
    path = tmp_path / "run" / "model"
    path.mkdir(parents=True)
    weights = path / "weights.safetensors"
    save_file(tiny_backbone().state_dict(), weights)
    model = tiny_model()
    card = ModelCard(
        format=1,
        sha256={"weights.safetensors": sha256_file(weights)},
        backbone=model.backbone.config,
        formulation=model.formulation,
        autoencoder={"name": "shapeworld", "fingerprint": tiny_autoencoder().fingerprint()},
        text=tiny_conditioner().fingerprints(),
        world="small",
        resolution_px=64,
        sampling=CardSampling(num_steps=5, guidance_scale=2.5, shift=1.5),
        provenance={"step": 7},
    )
    write_json(path / "model.json", to_json(card))
    return path


def _change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = read_json(folder / "model.json")
    change(card)
    write_json(folder / "model.json", card)


def test_a_run_and_its_model_folder_are_the_same_model(folder: Path) -> None:
    model = load_model(folder)
    assert find_model_folder(folder.parent) == folder
    assert model.settings.guidance_scale == 2.5
    assert (model.settings.num_steps, model.settings.shift) == (5, 1.5)
    assert (model.settings.height_px, model.settings.width_px) == (64, 64)
    assert (model.world, model.provenance) == ("small", {"step": 7})
    for name, tensor in tiny_backbone().state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", ["mmdit3", "mmdit-x", "dit", "crossdit", "uvit"])
def test_every_backbone_loads_as_it_was(folder: Path, kind: str) -> None:
    backbone, path = random_backbone(CONFIGS[kind]), folder / "weights.safetensors"
    save_file(backbone.state_dict(), path)
    card = replace(
        read_model_card(folder), backbone=backbone.config, sha256={path.name: sha256_file(path)}
    )
    write_json(folder / "model.json", to_json(card))
    with torch.no_grad():
        assert torch.equal(load_model(folder).backbone(*inputs()), backbone(*inputs()))


def test_weights_stored_in_bf16_compute_in_fp32(folder: Path) -> None:
    path = folder / "weights.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)
    _change_card(folder, lambda card: card["sha256"].update({path.name: sha256_file(path)}))
    assert {p.dtype for p in load_model(folder).backbone.parameters()} == {torch.float32}


def test_float32_is_multiplied_in_float32_where_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a processor that would rather multiply in bfloat16, and so it says."""
    monkeypatch.setattr("rectiflow.models.precision.has_fast_bf16", lambda device="cpu": True)
    seen: dict[str, set[torch.dtype]] = {"auto": set(), "fp32": set()}
    for precision, types in seen.items():
        model = load_model(folder, LoadSettings(precision=precision))
        for module in model.backbone.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda *call, types=types: types.add(call[2].dtype))
        generate(model, ["a red circle"], [3], replace(model.settings, num_steps=1))
        about = picture_metadata(model, "a red circle", 3, model.settings)
        assert about.environment is not None
        assert f"torch.{about.environment.precision}" == str(model.product_dtype)
        assert (about.parts and about.parts.precision) == (None if precision == "auto" else "fp32")
    assert seen == {"auto": {torch.bfloat16}, "fp32": {torch.float32}}


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_told(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here: .*give cpu"):
        load_model(folder, LoadSettings(device=name))


def test_with_its_modulation_in_a_file_it_draws_the_same(folder: Path) -> None:
    plain = load_model(folder)
    model = load_model(folder, LoadSettings(offload_modulation=True))
    for num_steps in (2, 70):
        settings = replace(plain.settings, num_steps=num_steps)
        pictures = [generate(one, ["a red circle"], [3], settings) for one in (plain, model)]
        assert np.array_equal(*pictures)
    with pytest.raises(ConfigError, match="would read its weights from a file each time"):
        ModelChanges(is_compiled=True).of(model)


def test_moves_as_a_whole(folder: Path) -> None:
    model = load_model(folder)
    moved = replace(model, conditioner=deepcopy(model.conditioner)).to("meta")
    assert moved.device == torch.device("meta")
    for part in (moved.autoencoder, moved.conditioner):
        assert next(part.parameters()).device == moved.device


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no model 'no-such': give \"tiny\", \"tiny-mmdit\", the folder"
    ):
        load_model("no-such")
    with pytest.raises(UserError, match="holds no weights: neither .safetensors files, nor"):
        load_model(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="has not reached its first checkpoint; continue it"):
        load_model(tmp_path)


def test_a_flipped_byte_or_a_cut_file_is_told(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors is cut or damaged: its"):
        load_model(folder)
    path.write_bytes(data[:1000])
    with pytest.raises(CheckpointError, match="cut or damaged"):
        load_model(folder)
    _change_card(folder, lambda card: card["sha256"].update({path.name: sha256_file(path)}))
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        load_model(folder)
    path.unlink()
    with pytest.raises(UserError, match="cannot read .*weights.safetensors"):
        load_model(folder)


def test_a_checkpoint_of_another_depth_is_told(folder: Path) -> None:
    _change_card(folder, lambda card: card["backbone"].update(depth=3))
    with pytest.raises(CheckpointError, match=r"of another model.*\(depth 3\).*expected"):
        load_model(folder)


@pytest.mark.parametrize("part", ["autoencoder", "clip_g"])
def test_other_encoders_than_those_of_the_training_are_told(folder: Path, part: str) -> None:
    def change(card: dict[str, Any]) -> None:
        if part == "autoencoder":
            card["autoencoder"]["fingerprint"] = "f" * 64
        else:
            card["text"][part] = "f" * 64

    _change_card(folder, change)
    with pytest.raises(UserError, match=rf"trained with another {part} \(fingerprint ffffffffffff"):
        load_model(folder)


def test_a_weaker_model_of_other_text_encoders_is_told(folder: Path) -> None:
    model = load_model(folder)
    settings = replace(model.settings, guidance=AutoGuidance(weaker=str(folder)))
    assert with_weaker(model, settings).weaker is not None
    _change_card(folder, lambda card: card["text"].update(clip_g="f" * 64))
    with pytest.raises(
        UserError, match="cannot guide .* trained with another clip_g; name a model"
    ):
        with_weaker(model, settings)
    # Encoders that are not in use say nothing.
    with_weaker(replace(model, conditioner=tiny_conditioner(("clip_l", "t5"))), settings)
    _change_card(folder, lambda card: card["text"].pop("t5"))
    with pytest.raises(UserError, match="trained without t5; name a model of the same text"):
        with_weaker(replace(model, conditioner=tiny_conditioner(("clip_l", "t5"))), settings)


def test_an_unknown_key_and_another_format_are_told(folder: Path) -> None:
    _change_card(folder, lambda card: card.update(surprise=1))
    with pytest.raises(ConfigError, match=r'model.json: unknown key "surprise"'):
        load_model(folder)
    _change_card(folder, lambda card: (card.pop("surprise"), card.update(format=2)))
    with pytest.raises(UserError, match="has format 2, this version reads format 1"):
        load_model(folder)
    (folder / "model.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match="not valid JSON"):
        load_model(folder)
