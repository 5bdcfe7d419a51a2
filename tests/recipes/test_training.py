"""A store of released parts: it says which, a run on it draws with them, and so does its model."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.parts import make_folder
from generation.released_folder import TOKENS, save_released
from PIL import Image
from safetensors.torch import load_file, save_file

from rectiflow.base.errors import ConfigError, StoreError, UserError
from rectiflow.base.files import read_json, sha256_file
from rectiflow.data.encode import EncodeReport
from rectiflow.data.store_format import read_header
from rectiflow.generation.frozen_parts import parts_of
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.model import load_model
from rectiflow.generation.text_to_image import generate
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published import convert, open_checkpoint
from rectiflow.models.published.text_loading import StoredEncoders
from rectiflow.recipes.encoding import encode_with_parts
from rectiflow.recipes.fine_tuning import fine_tune
from rectiflow.recipes.fine_tuning_request import FineTuning
from rectiflow.recipes.released_size import sd3
from rectiflow.recipes.training import train_on_store
from rectiflow.training.loop import TrainResult
from rectiflow.training.recipe import TrainRecipe

SIZES = {"depth": 1, "context_dim": 192, "pooled_dim": 160, "position_side": 8, "base_side": 4}
LOAD = LoadSettings(t5_tokens=TOKENS)
#: Pixels around a sheet of sample pictures.
FRAME = 2


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_released(tmp_path_factory.mktemp("kept") / "sd3")


@pytest.fixture
def released(kept: Path, tmp_path: Path) -> Path:
    """A copy, which a test may move or change."""
    return Path(shutil.copytree(kept, tmp_path / "sd3"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder", 4)


def encode(folder: Path, store: Path, parts: Path, load: LoadSettings = LOAD) -> EncodeReport:
    return encode_with_parts(folder, store, parts=parts, load=load, resolution_px=32)


def recipe(backbone: BackboneConfig | None = None) -> TrainRecipe:
    """The paper's, of two small steps."""
    return replace(
        sd3(1),
        backbone=backbone or MMDiTConfig(**SIZES),
        resolution_px=32,
        batch_size=2,
        micro_batch=None,
        max_steps=2,
        num_validation=0,
        sample_every=2,
        sample_prompts=("a red circle",),
        sampling=replace(sd3(1).sampling, num_steps=2),
    )


def train(store: Path, run: Path, **settings: object) -> TrainResult:
    return train_on_store(recipe(), store, run, **settings)


@pytest.mark.parametrize("backbone", [MMDiTConfig(**SIZES), UViTConfig(**SIZES)])
def test_a_run_on_released_parts(
    kept: Path, folder: Path, tmp_path: Path, backbone: BackboneConfig
) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    assert encode(folder, store, kept).num_samples == 4
    source = read_header(store).parts
    assert source is not None
    assert (source.model, source.encoders) == (str(kept), ("clip_l", "clip_g", "t5"))
    assert (source.t5_tokens, source.precision) == (TOKENS, "fp32")
    train_on_store(recipe(backbone), store, run)
    model = load_model(run)
    assert model.source == source
    drawn = generate(model, ["a red circle"], [0])
    (sheet,) = (run / "samples").glob("*.png")
    assert np.array_equal(np.array(Image.open(sheet))[FRAME:-FRAME, FRAME:-FRAME], drawn[0])


def test_a_model_of_ours_names_its_parts_for_further_stores(
    kept: Path, folder: Path, tmp_path: Path
) -> None:
    encode(folder, tmp_path / "store", kept)
    train(tmp_path / "store", tmp_path / "run")
    report = encode(folder, tmp_path / "store", tmp_path / "run", LoadSettings())
    assert (report.num_latents_encoded, report.num_captions_encoded) == (0, 0)
    assert read_header(tmp_path / "store").parts == load_model(tmp_path / "run").source
    # Fine-tuned, it still knows them.
    fine_tune(
        FineTuning(
            model=str(tmp_path / "run"),
            data=folder,
            out=tmp_path / "tuned",
            max_steps=1,
            batch_size=2,
        ),
        progress=False,
    )
    assert load_model(tmp_path / "tuned").source == load_model(tmp_path / "run").source
    # Those that ship have no place to note.
    assert parts_of("tiny").source is None


@pytest.mark.parity
def test_such_a_run_becomes_a_whole_pipeline(released: Path, folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    encode(folder, tmp_path / "store", released)
    train(tmp_path / "store", tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "pipeline")
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipeline", torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a red circle", height=32, width=32, num_inference_steps=2, max_sequence_length=TOKENS
    )
    assert theirs.images[0].size == (32, 32)
    for kind in ("vae", "text_encoder_3"):
        (file,) = (released / kind).glob("*.safetensors")
        assert sha256_file(tmp_path / "pipeline" / kind / file.name) == sha256_file(file)
    # Another autoencoder, and text encoders of which one is gone, are no longer the model's.
    (released / "vae").rename(released / "old")
    shutil.copytree(released / "old", released / "vae")
    (file,) = (released / "vae").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: 2.0 * tensor for name, tensor in tensors.items()}, file)
    (released / "text_encoder_3").rename(released / "t5")
    found = open_checkpoint(tmp_path / "run")
    assert set(found.parts) == {"mmdit"}
    assert found.missing["autoencoder"].startswith("the model was trained with another than there")
    assert "holds no text encoder T5" in found.missing["clip_l"]
    released.rename(tmp_path / "elsewhere")
    found = open_checkpoint(tmp_path / "run")
    assert found.missing["t5"] == f"there is no file or folder {released}"


def test_parts_that_have_moved(released: Path, folder: Path, tmp_path: Path) -> None:
    store, before, after = tmp_path / "store", tmp_path / "before", tmp_path / "after"
    encode(folder, store, released)
    train(store, before)
    drawn = generate(load_model(before), ["a blue square"], [0])
    moved = released.rename(tmp_path / "elsewhere")
    for call in (lambda: train(store, after), lambda: load_model(before)):
        with pytest.raises(UserError, match=r"there is no file or folder .*/sd3 to take auto.*--p"):
            call()
    assert not after.exists()
    train(store, after, parts=str(moved))
    source = load_model(after).source
    assert source is not None
    assert source.model == str(moved)
    there = LoadSettings(autoencoder=moved, text_encoders=moved, tokenizers=moved)
    assert np.array_equal(generate(load_model(before, there), ["a blue square"], [0]), drawn)
    # A run tells where they are now; it is no place of parts itself.
    train(store, tmp_path / "third", parts=str(after))
    assert load_model(tmp_path / "third").source == source


def test_one_part_that_has_moved(released: Path, folder: Path, tmp_path: Path) -> None:
    autoencoder = released / "vae"
    load = replace(LOAD, autoencoder=autoencoder, text_encoders=released)
    encode(folder, tmp_path / "store", autoencoder, load)
    train(tmp_path / "store", tmp_path / "run")
    moved = autoencoder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="vae"):
        load_model(tmp_path / "run")
    assert load_model(tmp_path / "run", LoadSettings(autoencoder=moved)).source is not None


def test_parts_are_used_as_they_were(kept: Path, folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    encode(folder, store, kept, LoadSettings(encoders=("clip_l", "clip_g")))
    for changes, told in (
        ({"t5_tokens": 16}, "with --t5-tokens 0, not 16"),
        ({"precision": "bf16"}, "with --precision fp32, not bf16"),
        ({"encoders": ("clip_l",)}, "with --encoders clip_l,clip_g, not clip_l"),
    ):
        settings = LoadSettings(**({"encoders": ("clip_l", "clip_g")} | changes))
        with pytest.raises(StoreError, match=f"the store was encoded {told}; ask for the same"):
            encode(folder, store, kept, settings)
    encode(folder, tmp_path / "half", kept, replace(LOAD, precision="bf16"))
    train(tmp_path / "half", tmp_path / "run")
    with pytest.raises(ConfigError, match="precision=fp32 is not what the text encoders of"):
        encode(folder, tmp_path / "half", tmp_path / "run", LoadSettings(precision="fp32"))


def test_what_cannot_be_trained_is_told_before_encoders_load(
    kept: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the text encoders were loaded")

    encode(folder, tmp_path / "store", kept)
    monkeypatch.setattr(StoredEncoders, "load", refuse)
    with pytest.raises(ConfigError, match="the store's resolution is 32 px"):
        train_on_store(replace(recipe(), resolution_px=64), tmp_path / "store", tmp_path / "run")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="foreign"):
        train(tmp_path / "store", tmp_path / "foreign")


def test_prompts_are_encoded_where_pictures_are_drawn(
    kept: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(folder, tmp_path / "store", kept)
    loads: list[int] = []
    load = StoredEncoders.load

    def count(self: StoredEncoders) -> object:
        loads.append(1)
        return load(self)

    monkeypatch.setattr(StoredEncoders, "load", count)
    asked = replace(recipe(), sample_prompts=("never said before",))
    train_on_store(asked, tmp_path / "store", tmp_path / "run")
    # Once for all prompts, before the first step, and then from the cache.
    assert len(loads) == 1


def test_other_parts_at_the_same_place(released: Path, folder: Path, tmp_path: Path) -> None:
    encode(folder, tmp_path / "store", released)
    train(tmp_path / "store", tmp_path / "run")
    words = released / "tokenizer_3" / "tokenizer.json"
    words.write_text(words.read_text().replace("circle", "circel"))
    with pytest.raises(StoreError, match="encoded by another text encoder t5"):
        train(tmp_path / "store", tmp_path / "run")
    with pytest.raises(UserError, match=r"trained with another t5 .* than there is in .*sd3"):
        load_model(tmp_path / "run")


def test_some_encoders(kept: Path, folder: Path, tmp_path: Path) -> None:
    encode(folder, tmp_path / "store", kept, replace(LOAD, encoders=("clip_l", "clip_g")))
    train(tmp_path / "store", tmp_path / "run")
    assert set(load_model(tmp_path / "run").conditioner.tokenizers) == {"clip_l", "clip_g"}
    fewer = load_model(tmp_path / "run", LoadSettings(encoders=("clip_l",)))
    assert set(fewer.conditioner.tokenizers) == {"clip_l"}
    with pytest.raises(UserError, match="was trained without t5, and would not know what it says"):
        load_model(tmp_path / "run", LoadSettings(encoders=("clip_l", "t5")))


def test_without_any_encoder(kept: Path, folder: Path, tmp_path: Path) -> None:
    load = LoadSettings(encoders=(), t5_tokens=0)
    encode(folder, tmp_path / "store", kept, load)
    train(tmp_path / "store", tmp_path / "run")
    assert not load_model(tmp_path / "run").conditioner.tokenizers
    assert read_json(tmp_path / "store" / "store.json")["parts"]["encoders"] == []


def test_parts_that_ship_cannot_have_moved(folder: Path, tmp_path: Path) -> None:
    encode_with_parts(folder, tmp_path / "store", resolution_px=32)
    with pytest.raises(UserError, match="was encoded by the parts that ship"):
        train(tmp_path / "store", tmp_path / "run", parts="tiny")
