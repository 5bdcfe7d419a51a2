import json
import shutil

import pytest
import torch

from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.models.text import EncodedText
from rectiflow.models.text.loading import load_text_folder, load_tokenizer

PROMPTS = ["a red circle", 'the word "CAT" in red', "😀"]


@pytest.fixture
def folder(random_conditioner, tmp_path):
    random_conditioner.save(tmp_path)
    return tmp_path


def _assert_same(first: EncodedText, second: EncodedText) -> None:
    for name, column in first.columns().items():
        assert torch.equal(column, second.columns()[name]), name


def test_saved_encoders_load_as_themselves(random_conditioner, folder):
    loaded = load_text_folder(folder)
    assert loaded.fingerprints() == random_conditioner.fingerprints()
    assert loaded.config == random_conditioner.config
    _assert_same(loaded.encode(PROMPTS), random_conditioner.encode(PROMPTS))


def test_weights_stored_in_bf16_compute_in_fp32(random_conditioner, tmp_path):
    random_conditioner.to(torch.bfloat16).save(tmp_path)
    loaded = load_text_folder(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.encode(PROMPTS).t5.dtype == torch.float32


def test_some_encoders_only(random_conditioner, folder):
    shutil.rmtree(folder / "text_encoder_3")
    loaded = load_text_folder(folder, encoders=("clip_g", "clip_l"))
    encoded, whole = loaded.encode(PROMPTS), random_conditioner.encode(PROMPTS)
    assert torch.equal(encoded.clip_g.context, whole.clip_g.context)
    assert encoded.t5.shape == whole.t5.shape
    assert not encoded.t5.any()


def test_a_folder_without_our_config_takes_lengths_from_the_caller(random_conditioner, folder):
    (folder / "conditioner.json").unlink()
    lengths = {"clip_l": 12, "clip_g": 12, "t5": 16}
    loaded = load_text_folder(folder, lengths=lengths, block_size=8)
    assert loaded.config == random_conditioner.config
    _assert_same(loaded.encode(PROMPTS), random_conditioner.encode(PROMPTS))
    # And SD3's where the caller says nothing.
    assert load_text_folder(folder, encoders=("t5",)).config.context_length == 77 + 256


def test_loading_prints_nothing(folder, capfd):
    load_text_folder(folder)
    assert capfd.readouterr() == ("", "")


def test_missing_files_are_named(folder):
    with pytest.raises(UserError, match="unknown text encoder 'clip'; choose among clip_l"):
        load_text_folder(folder, encoders=("clip",))
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(UserError, match=r"tokenizer_2/tokenizer_config.json is missing"):
        load_text_folder(folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UserError, match=r"text_encoder/config.json is missing"):
        load_text_folder(folder, encoders=("clip_l",))


def test_cut_weights_are_refused(folder):
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot load CLIPTextModelWithProjection from"):
        load_text_folder(folder, encoders=("clip_l",))


def test_weights_of_another_model_are_refused(folder):
    shutil.copy(
        folder / "text_encoder_3" / "model.safetensors", folder / "text_encoder/model.safetensors"
    )
    with pytest.raises(CheckpointError, match="lack tensors of CLIPTextModelWithProjection"):
        load_text_folder(folder, encoders=("clip_l",))


def test_encoders_that_do_not_fit_the_config_are_refused(folder):
    path = folder / "conditioner.json"
    stated = json.loads(path.read_text())
    stated["clip_l"]["width"] = 40
    path.write_text(json.dumps(stated))
    with pytest.raises(ConfigError, match="clip_l is 32 wide"):
        load_text_folder(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_a_damaged_tokenizer_is_told_in_one_line(name, content, folder):
    (folder / "tokenizer" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot load the tokenizer in .*/tokenizer ") as e:
        load_tokenizer(folder / "tokenizer")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_config_is_told_in_one_line(content, folder):
    (folder / "conditioner.json").unlink()
    (folder / "text_encoder" / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_text_folder(folder)
    assert "\n" not in str(caught.value)


def test_code_beside_a_tokenizer_is_never_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to whoever asks
    witness, place = tmp_path / "ran", folder / "tokenizer"
    (place / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(witness)!r}).touch()\nclass Own:\n    pass\n"
    )
    described = json.loads((place / "tokenizer_config.json").read_text())
    described |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (place / "tokenizer_config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        load_tokenizer(place)
    assert not witness.exists()
