"""A model with LoRAs is the merged one, and the one without never learns of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generation.tiny_edits import lora_file
from models.small_backbones import CONFIGS, random_backbone
from tiny_model import tiny_backbone, tiny_conditioner, tiny_model

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.base.files import sha256_file
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import hash_lora, read_loras, with_loras
from rectiflow.generation.model import Model
from rectiflow.models.lora import merge, read_lora, text_sizes
from rectiflow.models.text.cache import CachedConditioner
from rectiflow.models.text.conditioner import bare_tokenizers


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_file(tmp_path_factory.mktemp("loras") / "style.safetensors")


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_file(tmp_path_factory.mktemp("loras") / "wordy.safetensors", text="clip_l", rank=2)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def cached(identity: str = "plain") -> CachedConditioner:
    plain = tiny_conditioner()
    return CachedConditioner(
        config=plain.config,
        tokenizers=bare_tokenizers(plain.tokenizers),
        sizes=text_sizes(plain.encoders),
        identity=identity,
        load=tiny_conditioner,
    )


def test_it_is_the_merged_model_and_the_plain_one_stays(
    model: Model, style: Path, wordy: Path
) -> None:
    before = weights(model.backbone), weights(model.conditioner.encoders)
    changed = with_loras(
        model, [LoraFile(path=style, weight=0.5), LoraFile(path=wordy, weight=-1.5)]
    )
    assert same(weights(model.backbone), before[0])
    assert same(weights(model.conditioner.encoders), before[1])
    config, sizes = model.backbone.config, text_sizes(model.conditioner.encoders)
    stack = [(read_lora(style, config), 0.5), (read_lora(wordy, config, text=sizes), -1.5)]
    expected = tiny_backbone()
    tiny_conditioner.cache_clear()
    encoders = tiny_conditioner().encoders
    merge(expected, stack, encoders=encoders)
    assert same(weights(changed.backbone), weights(expected))
    assert same(weights(changed.conditioner.encoders), weights(encoders))
    tiny_conditioner.cache_clear()
    assert not same(before[1], weights(encoders))
    told = [(lora.name, lora.sha256, lora.weight) for lora in changed.loras]
    assert told == [
        ("style.safetensors", sha256_file(style), 0.5),
        ("wordy.safetensors", sha256_file(wordy), -1.5),
    ]


def test_what_is_not_changed_is_shared(model: Model, style: Path) -> None:
    changed = with_loras(model, [LoraFile(path=style)])
    assert changed.conditioner is model.conditioner
    ours, theirs = (dict(m.backbone.named_parameters()) for m in (model, changed))
    assert all(parameter is not theirs[name] for name, parameter in ours.items())
    bias = next(name for name in ours if name.endswith(".bias"))
    assert ours[bias].data_ptr() == theirs[bias].data_ptr()
    assert with_loras(model, []) is model


def test_sizes_that_nobody_knows_are_read_off_the_encoders(model: Model, wordy: Path) -> None:
    unsized = cached()
    unsized.sizes = None
    files = [LoraFile(path=wordy)]
    found, expected = (
        with_loras(replace(model, conditioner=conditioner), files).conditioner.encode(["a ring"])
        for conditioner in (unsized, tiny_conditioner())
    )
    assert torch.equal(found.clip_l.context, expected.clip_l.context)
    assert unsized.is_loaded


def test_prompts_states_are_kept_apart(
    model: Model, style: Path, wordy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    plain = cached()
    model = replace(model, conditioner=plain)

    def conditioner(*loras: tuple[Path, float]) -> CachedConditioner:
        files = [LoraFile(path=path, weight=weight) for path, weight in loras]
        found = with_loras(model, files).conditioner
        assert isinstance(found, CachedConditioner)
        return found

    # A LoRA without text parts, or of weight 0, changes no states: they are the plain ones.
    assert conditioner((style, 1.0)) is plain
    assert conditioner((wordy, 0.0)) is plain
    first, second = conditioner((wordy, 1.0)), conditioner((style, 1.0), (wordy, 0.5))
    assert not plain.is_loaded
    states = [each.encode(["a ring"]).clip_l.context for each in (first, plain, second)]
    assert len(list((tmp_path / "prompts").iterdir())) == 3
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    # Met again, in any order, each has its own, and needs no encoder.
    for found, expected in zip((first, plain, second), states):
        again = cached() if found is plain else conditioner((wordy, 1.0 if found is first else 0.5))
        assert torch.equal(again.encode(["a ring"]).clip_l.context, expected)
        assert not again.is_loaded


def test_pefts_config_belongs_to_the_hash(style: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(style.read_bytes())
    assert hash_lora(path) == hash_lora(style)
    hashes = {hash_lora(path)}
    for alpha in (1, 2):
        (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}.0}}')
        hashes.add(hash_lora(path))
    assert len(hashes) == 3


def test_files_and_weights_from_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:1").touch()
    Path("a:1:2").touch()
    for text, path, weight in (
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.5", "style.safetensors", 0.5),
        ("style.safetensors:-1", "style.safetensors", -1.0),
        ("c:/style.safetensors", "c:/style.safetensors", 1.0),
        ("a:1", "a:1", 1.0),
        ("a:1:2", "a:1:2", 1.0),
        ("a:1:2:3", "a:1:2", 3.0),
        (":2", ":2", 1.0),
        ("a:", "a:", 1.0),
    ):
        assert LoraFile.parse(text) == LoraFile(path=Path(path), weight=weight)
    with pytest.raises(ConfigError, match="the weight of a is nan; give a finite number, 1 as"):
        LoraFile.parse("a:nan")


def test_what_does_not_go_together(model: Model, style: Path, wordy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        read_loras(model, [LoraFile(path=tmp_path / "nowhere")])
    once = with_loras(model, [LoraFile(path=style)])
    with pytest.raises(UserError, match="test has LoRAs in its weights already; merge all at once"):
        with_loras(once, [LoraFile(path=style)])
    without = cached()
    del without.tokenizers["clip_l"]
    told = r"wordy.safetensors changes clip_l, which the model comes without; .*--encoders"
    with pytest.raises(UserError, match=told):
        with_loras(replace(model, conditioner=without), [LoraFile(path=wordy)])
    with pytest.raises(UserError, match="LoRAs are read for MM-DiTs alone"):
        read_loras(replace(model, backbone=random_backbone(CONFIGS["dit"])), [LoraFile(path=style)])
