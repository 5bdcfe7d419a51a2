"""Released weights draw what diffusers draws of them, from wherever their parts lie."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from generation.released_folder import CONFIGS, TOKENS, diffusers_pipeline, save_released
from huggingface_hub.utils import filter_repo_objects
from models.lora.small_loras import text_tensors, write
from models.published.small_checkpoints import random_mmdit, write_single_file

from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.files import read_json, sha256_file
from rectiflow.generation import released
from rectiflow.generation.description import describe_picture
from rectiflow.generation.folder import sample_to_folder
from rectiflow.generation.latents import times_of
from rectiflow.generation.load_settings import LoadSettings, LoraFile
from rectiflow.generation.loras import with_loras
from rectiflow.generation.model import load_model, with_weaker
from rectiflow.generation.pipeline import Pipeline
from rectiflow.generation.released import name_released
from rectiflow.generation.replay import replay
from rectiflow.models.published import (
    RELEASED,
    convert,
    open_checkpoint,
    part_of,
    save_single_file,
)
from rectiflow.models.text import assemble
from rectiflow.models.text.cache import CachedConditioner
from rectiflow.sampling import DynamicShiftGrid, ReleasedGrid, parse_guidance

CALL = {
    "prompt": ["a red circle", "two small squares above a star"],
    "negative_prompt": ["blue", ""],
    "num_inference_steps": 6,
    "guidance_scale": 5.0,
    "height": 64,
    "width": 64,
}


CLIPS = ("clip_l", "clip_g")
#: Products round by where weights lie in memory, and so in a file.
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_released(tmp_path_factory.mktemp("released") / "sd3")


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("single") / "sd3.safetensors"
    convert(folder, path)
    return path


def noise(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn(path: Path, output_type: str = "latent", **options):
    ours = Pipeline.from_pretrained(path, t5_tokens=TOKENS, **options)
    return ours(**CALL, latents=noise(), solver="euler", output_type=output_type).images


@pytest.mark.parity
@pytest.mark.parametrize("kind", CONFIGS)
def test_draws_as_diffusers_does(kind, tmp_path):
    theirs = diffusers_pipeline(kind)
    path = save_released(tmp_path / kind, kind)
    for output_type, tolerance in (("latent", 1e-4), ("np", 5e-5)):
        expected = theirs(
            **CALL, latents=noise(), max_sequence_length=TOKENS, output_type=output_type
        ).images
        found = drawn(path, output_type)
        assert expected.std() > 0.1
        assert abs(found - expected).max() < tolerance


@pytest.mark.parity
def test_without_t5_zeros_stand_for_it_as_in_diffusers_or_nothing(folder):
    theirs = diffusers_pipeline("sd3-medium")
    t5, theirs.text_encoder_3 = theirs.text_encoder_3, None
    try:
        expected = theirs(
            **CALL, latents=noise(), max_sequence_length=TOKENS, output_type="latent"
        ).images
    finally:
        theirs.text_encoder_3 = t5
    assert (drawn(folder, encoders=CLIPS) - expected).abs().max() < 1e-4
    dropped = Pipeline.from_pretrained(folder, encoders=CLIPS).model.conditioner
    assert assemble(dropped.null()).context.shape == (1, 16, 192)
    none = load_model(folder, LoadSettings(encoders=())).conditioner
    assert assemble(none.encode(["a"])).context.abs().max() == 0


def test_a_single_file_draws_as_the_folder_it_came_from(folder, single):
    torch.testing.assert_close(drawn(single, tokenizers=folder), drawn(folder), **CLOSE)


def test_parts_may_lie_apart(folder, single, tmp_path):
    parts = open_checkpoint(folder).parts
    for name in ("mmdit", "autoencoder"):
        save_single_file(tmp_path / f"{name}.safetensors", {name: parts[name]})
    text = {name: parts[name] for name in ("clip_l", "clip_g", "t5")}
    save_single_file(tmp_path / "text.safetensors", text)
    places = {
        "autoencoder": tmp_path / "autoencoder.safetensors",
        "text_encoders": tmp_path / "text.safetensors",
        "tokenizers": folder,
    }
    mmdit = tmp_path / "mmdit.safetensors"
    torch.testing.assert_close(drawn(mmdit, **places), drawn(folder), **CLOSE)
    for left_out, told in {
        "autoencoder": "comes without the autoencoder; give .*--autoencoder",
        "text_encoders": "comes without text encoders; give .*--text-encoders",
        "tokenizers": "comes without tokenizers; give the folder .*--tokenizers",
    }.items():
        with pytest.raises(UserError, match=told):
            drawn(mmdit, **(places | {left_out: None}))
    save_single_file(tmp_path / "clip.safetensors", {"clip_l": text["clip_l"]})
    with pytest.raises(CheckpointError, match="holds no text encoder T5, only"):
        save_single_file(tmp_path / "clips.safetensors", {"clip_l": text["clip_l"]})
        drawn(
            mmdit, **(places | {"text_encoders": tmp_path / "clips.safetensors"}), encoders=["t5"]
        )


def test_a_weaker_model_may_be_a_backbone_alone(folder, tmp_path):
    path = tmp_path / "weaker.safetensors"
    save_single_file(path, {"mmdit": open_checkpoint(folder).part("mmdit")})
    model = load_model(folder, LoadSettings(t5_tokens=TOKENS, precision="bf16"))
    guided = replace(model.settings, guidance=parse_guidance(f"auto:weaker={path}"))
    both = with_weaker(model, guided)
    assert both.weaker is not None
    assert (both.weaker.name, both.weaker.digest) == (str(path), sha256_file(path))
    assert both.weaker.backbone.pos_embed.shape == model.backbone.pos_embed.shape
    assert {p.dtype for p in both.weaker.backbone.parameters()} == {torch.bfloat16}
    ours = replace(model.settings, guidance=parse_guidance("auto:weaker=tiny"))
    with pytest.raises(UserError, match="tiny cannot guide .* latents of another autoencoder"):
        with_weaker(model, ours)
    save_single_file(
        tmp_path / "vae.safetensors", {"autoencoder": open_checkpoint(folder).part("autoencoder")}
    )
    other = parse_guidance(f"auto:weaker={tmp_path / 'vae.safetensors'}")
    with pytest.raises(CheckpointError, match="holds no MM-DiT, only: autoencoder"):
        with_weaker(model, replace(model.settings, guidance=other))


def test_clip_g_reads_an_exclamation_mark_as_a_word_and_pads_with_zero(folder):
    conditioner = load_model(folder, LoadSettings(t5_tokens=TOKENS)).conditioner
    assert isinstance(conditioner, CachedConditioner)
    ids = {name: conditioner.conditioner().token_ids(name, ["stop!"])[0] for name in CLIPS}
    end = int(ids["clip_l"].max())
    length = ids["clip_l"].tolist().index(end) + 1
    assert torch.equal(ids["clip_l"][:length], ids["clip_g"][:length])
    assert ids["clip_l"][length:].tolist() == [end] * (len(ids["clip_l"]) - length)
    assert ids["clip_g"][length:].tolist() == [0] * (len(ids["clip_g"]) - length)
    assert 0 not in ids["clip_g"][:length]


def test_a_prompt_met_before_needs_no_encoder(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    settings = LoadSettings(t5_tokens=TOKENS)
    first = load_model(folder, settings).conditioner
    expected = first.encode(["a", "b", "a"])
    assert isinstance(first, CachedConditioner)
    assert first.is_loaded
    again = load_model(folder, settings).conditioner
    assert isinstance(again, CachedConditioner)
    for name, column in again.encode(["a", "b", "a"]).columns().items():
        assert torch.equal(column, expected.columns()[name])
    assert not again.is_loaded
    # Other lengths are other states; a damaged file is made again.
    other = load_model(folder, LoadSettings(t5_tokens=TOKENS - 1)).conditioner
    assert other.encode(["a"]).t5.shape[1] == TOKENS - 1
    for path in (tmp_path / "prompts").iterdir():
        path.write_bytes(b"cut")
    assert torch.equal(again.encode(["b"]).t5, expected.t5[1:2])
    assert again.is_loaded


def test_a_lora_of_text_encoders_leaves_the_plain_states(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    model = load_model(folder, LoadSettings(t5_tokens=TOKENS))
    tensors = text_tensors(model.conditioner.sizes["clip_g"], "lora_te2_")
    style = LoraFile(path=write(tmp_path / "style.safetensors", tensors))
    styled = with_loras(model, [style])
    assert not model.conditioner.is_loaded
    changed = styled.conditioner.encode(["a"])
    plain = model.conditioner.encode(["a"])
    assert not torch.equal(changed.clip_g.context, plain.clip_g.context)
    assert torch.equal(changed.t5, plain.t5)
    fresh = load_model(folder, LoadSettings(t5_tokens=TOKENS))
    for again, expected in ((fresh, plain), (with_loras(fresh, [style]), changed)):
        assert torch.equal(again.conditioner.encode(["a"]).clip_g.context, expected.clip_g.context)
    assert not fresh.conditioner.is_loaded


def test_old_prompts_make_room(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("rectiflow.models.text.cache.MAX_BYTES", 1)
    load_model(folder, LoadSettings(t5_tokens=TOKENS)).conditioner.encode(["a", "b"])
    assert not list((tmp_path / "prompts").iterdir())


def test_a_picture_says_what_its_model_was_put_together_from(folder, single, tmp_path):
    def draw(**choices) -> Path:
        model = load_model(single, LoadSettings(tokenizers=folder, **choices))
        settings = replace(model.settings, num_steps=2, height_px=64, width_px=64)
        return sample_to_folder(model, "a", count=1, seed=0, out=tmp_path, settings=settings)[0]

    clips, zeros = {"encoders": CLIPS}, {"encoders": CLIPS, "t5_tokens": TOKENS}
    choices = [clips, zeros, clips | {"precision": "bf16"}, {"t5_tokens": TOKENS}]
    paths = [draw(**choice) for choice in choices]
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert str(replay(path, places=LoadSettings(tokenizers=folder))) == "identical"
    assert "clip_l, clip_g, 0 tokens of T5, precision fp32" in describe_picture(paths[0])
    with pytest.raises(UserError, match=r"cannot be had by that name: .*--tokenizers"):
        replay(paths[0])
    other = replay(paths[0], model=load_model(folder, LoadSettings(t5_tokens=TOKENS)))
    assert not other.is_identical
    assert "t5_tokens: 0 then, 16 now" in str(other)


def test_a_model_of_ours_without_an_encoder_says_so(tmp_path):
    model = load_model("tiny", LoadSettings(encoders=CLIPS))
    settings = replace(model.settings, num_steps=2)
    path = sample_to_folder(model, "a", count=1, seed=0, out=tmp_path, settings=settings)[0]
    assert str(replay(path)) == "identical"
    assert "parts: put together then, as trained now" in str(replay(path, model=load_model("tiny")))


def test_prompts_met_by_other_numbers_of_threads_are_kept_apart(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    conditioner = load_model(folder, LoadSettings(t5_tokens=TOKENS)).conditioner
    conditioner.encode(["a"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    conditioner.encode(["a"])
    assert len(list((tmp_path / "prompts").iterdir())) == 2


def test_number_types(folder):
    narrow = load_model(folder, LoadSettings(precision="bf16", t5_tokens=TOKENS))
    assert {p.dtype for p in narrow.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in narrow.autoencoder.parameters()} == {torch.float32}
    wide = drawn(folder)
    found = drawn(folder, dtype=torch.bfloat16)
    assert 0 < (found - wide).abs().mean() < 0.05 * wide.abs().mean()
    for wrong in (torch.float64, torch.int8):
        with pytest.raises(ConfigError, match=r"must be torch.float32, torch.bfloat16 or"):
            Pipeline.from_pretrained(folder, dtype=wrong)
    with pytest.raises(ConfigError, match="differ; give one"):
        Pipeline.from_pretrained(folder, dtype=torch.float32, torch_dtype=torch.float16)


@pytest.mark.parametrize(
    ("path", "is_turbo"),
    [
        ("/models/sd3.5_large_turbo.safetensors", True),
        ("/models/Stable-Diffusion-3.5-Large-Turbo", True),
        ("/mnt/turbo/sd3.5_large.safetensors", False),
        ("/large/turbo/mine.safetensors", True),
        ("/hub/models--stabilityai--stable-diffusion-3.5-large-turbo/snapshots/ec07796", True),
        ("/home/mine", False),
    ],
)
def test_the_turbo_model_is_told_by_the_nearest_name_that_says_so(path, is_turbo):
    large = list(RELEASED.values())[-1]
    name = "SD3.5-large-turbo" if is_turbo else "SD3.5-large"
    assert name_released(large, path) == name


def test_the_turbo_model_is_told_from_within_its_folder(tmp_path, monkeypatch):
    inside = tmp_path / "stable-diffusion-3.5-large-turbo"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert name_released(list(RELEASED.values())[-1], ".") == "SD3.5-large-turbo"


def test_parts_of_other_widths_are_told_before_anything_is_drawn(folder, tmp_path):
    parts = dict(open_checkpoint(folder).parts)
    for name, change, text in (
        ("context", {"context_dim": 128}, "give tokens of 192 numbers .* reads 128 and 160"),
        ("pooled", {"pooled_dim": 96}, "a pooled vector of 160, .* reads 192 and 96"),
        ("channels", {"in_channels": 8}, "an autoencoder of 16 latent channels, .* draws 8"),
    ):
        other = random_mmdit(replace(CONFIGS["sd3-medium"], **change))
        path = tmp_path / f"{name}.safetensors"
        save_single_file(path, parts | {"mmdit": part_of(other)})
        with pytest.raises(UserError, match=text):
            load_model(path, LoadSettings(tokenizers=folder, t5_tokens=TOKENS))
        with pytest.raises(UserError, match=text):
            load_model(path, LoadSettings(autoencoder=folder, text_encoders=folder))
        guided = parse_guidance(f"auto:weaker={path}")
        model = load_model(folder, LoadSettings(t5_tokens=TOKENS))
        with pytest.raises(UserError, match=f"{name}.safetensors cannot guide"):
            with_weaker(model, replace(model.settings, guidance=guided))


def test_a_weaker_model_of_smaller_pictures_is_told(folder, tmp_path):
    other = random_mmdit(replace(CONFIGS["sd3-medium"], position_side=2, base_side=2))
    path = write_single_file(tmp_path / "small.safetensors", other)
    ours = Pipeline.from_pretrained(folder, t5_tokens=TOKENS)
    text = r"height 64 px does not fit the weaker model .*small.safetensors; give .* up to 32 px"
    with pytest.raises(UserError, match=text):
        ours("a ring", guidance=f"auto:weaker={path}", guidance_scale=2.0)


def test_parts_in_memory_have_a_hash_of_what_they_hold():
    first, again, other = (random_mmdit(CONFIGS["sd3-medium"]) for _ in range(3))
    torch.nn.init.zeros_(other.context_embedder.bias)
    hashes = [part_of(model).sha256() for model in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_settings_are_those_of_the_released_model():
    for title, config in RELEASED.items():
        assert name_released(config, "x/model.safetensors") == title.partition(" or ")[0]
    large = list(RELEASED.values())[-1]
    turbo = released.RELEASED_SAMPLING[name_released(large, "sd3.5_large_Turbo.safetensors")]
    assert (turbo.num_steps, turbo.guidance_scale) == (4, 1.0)
    for sampling in released.RELEASED_SAMPLING.values():
        assert (sampling.shift, sampling.grid) == (3.0, ReleasedGrid())


@pytest.mark.parity
def test_times_are_those_of_the_folders_scheduler(folder, tmp_path):
    """Also where its shift follows the size, as diffusers reads the same folder."""
    shutil.copytree(folder, tmp_path / "dynamic")
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.save_pretrained(tmp_path / "dynamic" / "scheduler")
    model = load_model(tmp_path / "dynamic", LoadSettings(t5_tokens=TOKENS))
    assert (model.settings.grid, model.settings.shift) == (DynamicShiftGrid(), 1.0)
    mu = math.log(DynamicShiftGrid().shift_for(1024).alpha)
    theirs.set_timesteps(10, mu=mu)
    ours = times_of(model, torch.zeros(1, 16, 64, 64), replace(model.settings, num_steps=10))
    torch.testing.assert_close(ours, theirs.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"use_karras_sigmas": True},
        {"shift_terminal": 0.1},
        {"use_dynamic_shifting": True, "max_shift": 1.5},
        # As the public library writes it, with a number that JSON does not have.
        {"lambda_min_clipped": -math.inf, "_class_name": "DPMSolverMultistepScheduler"},
    ],
)
def test_a_scheduler_is_followed_or_refused(folder, tmp_path, options):
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(read_json(path) | options))
    name, value = list(options.items())[-1]
    with pytest.raises(CheckpointError, match=f"scheduler has {name}={value!r}, which rectiflow"):
        load_model(tmp_path / "other", LoadSettings(t5_tokens=TOKENS))


def test_without_any_encoder_no_tokenizer_is_needed(single):
    pipeline = Pipeline.from_pretrained(single, encoders=[], t5_tokens=4)
    drawn = pipeline(
        prompt_embeds=torch.zeros(1, 20, 192),
        pooled_prompt_embeds=torch.zeros(1, 160),
        num_inference_steps=1,
        guidance_scale=1.0,
    )
    assert drawn.images[0].size == (64, 64)


def test_names_on_the_hub(folder, tmp_path, monkeypatch):
    def hub_of(repository):
        """What the Hub's own function does with patterns, on a folder; notes what it fetched."""

        def snapshot_download(name, allow_patterns, ignore_patterns):
            files = [p.relative_to(repository).as_posix() for p in repository.rglob("*.*")]
            place = tmp_path / f"snapshot_{len(fetched)}"
            fetched.append(
                set(
                    filter_repo_objects(
                        files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
                    )
                )
            )
            for file in fetched[-1]:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).symlink_to(repository / file)
            place.mkdir(exist_ok=True)
            return str(place)

        return snapshot_download

    fetched = []
    repository = tmp_path / "repository"
    shutil.copytree(folder, repository)
    own = {p.relative_to(repository).as_posix() for p in repository.rglob("*.*")}
    more = ["text_encoders/clip_l.safetensors", "sd3_medium.safetensors"]
    more += ["transformer/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.onnx"]
    for file in more:
        (repository / file).parent.mkdir(exist_ok=True)
        (repository / file).write_bytes(b"again")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub_of(repository))
    model = load_model("somebody/sd3", LoadSettings(t5_tokens=TOKENS))
    assert model.name == "somebody/sd3"
    assert fetched == [own]

    weights = repository / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_model("somebody/sd3", LoadSettings(t5_tokens=TOKENS)).digest == model.digest

    (repository / "model_index.json").unlink()
    with pytest.raises(UserError, match="somebody/sd3 on the Hugging Face Hub is no folder of a"):
        load_model("somebody/sd3")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no file or folder nobody/nothing, and the Hugging Face"):
        load_model("nobody/nothing")


def test_settings_that_do_not_suit(folder, tmp_path):
    with pytest.raises(ConfigError, match="t5_tokens=600 must be from 0 to 512"):
        LoadSettings(t5_tokens=600)
    with pytest.raises(ConfigError, match="precision='fp8' must be one of auto, fp32, bf16, fp16"):
        LoadSettings(precision="fp8")
    with pytest.raises(ConfigError, match="t5_tokens=0 leaves T5 nothing to read"):
        LoadSettings(t5_tokens=0)
    with pytest.raises(UserError, match="unknown text encoder 'clip'"):
        load_model(folder, LoadSettings(encoders=("clip",)))
    with pytest.raises(ConfigError, match="t5_tokens=9 is for released weights; tiny is a model"):
        load_model("tiny", LoadSettings(t5_tokens=9))
    shutil.copytree(folder, tmp_path / "cut")
    path = tmp_path / "cut" / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "cut")
