"""A folder of pictures and a model, released or ours: a model, or a LoRA, that others load."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data.parts import picture_bytes, random_pixels
from generation.released_folder import TOKENS, save_released
from models.published.small_checkpoints import diffusers_output
from models.small_backbones import SIZES
from safetensors.torch import save_file
from tiny_model import tiny_model

from rectiflow.base.config import from_json
from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.files import read_json
from rectiflow.data.latent_store import LatentStore
from rectiflow.generation.frozen_parts import parts_of
from rectiflow.generation.load_settings import LoadSettings, LoraFile
from rectiflow.generation.loras import with_loras
from rectiflow.generation.model import load_model
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.published import convert, open_checkpoint
from rectiflow.models.shipped import shipped_path
from rectiflow.models.text.cache import CachedConditioner
from rectiflow.recipes import fine_tuning
from rectiflow.recipes.fine_tuning import fine_tune, fine_tuning_recipe
from rectiflow.recipes.fine_tuning_parts import at_size, prepare_pipeline
from rectiflow.recipes.fine_tuning_request import FineTuning, hash_prior
from rectiflow.sampling import CFGZeroStar, Heun, SamplingDefaults
from rectiflow.training.fine_tuning import LoraTraining
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.tensor_files import read_tensors

LOAD = LoadSettings(t5_tokens=TOKENS)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_released(tmp_path_factory.mktemp("released") / "sd3", "sd3.5-medium")


@pytest.fixture(scope="module")
def single(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "sd3.safetensors"
    convert(released, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture_bytes(random_pixels(i, 64)))
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def request(model: Path | str, data: Path, out: Path, **changes: object) -> FineTuning:
    settings = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3, "load": LOAD}
    return FineTuning(model=str(model), data=data, out=out, **(settings | changes))


def newest(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    folder = max((run / "checkpoints").iterdir())
    return {file.name: read_tensors(file) for file in folder.glob("*.safetensors")}


@pytest.mark.parity
def test_all_weights_of_a_released_model(released: Path, pictures: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    run = tmp_path / "run"
    asked = request(released, pictures, run, max_steps=1)
    fine_tune(asked, progress=False)
    # Goes on where it stopped, and may be looked at in another way.
    asked = replace(asked, max_steps=2, sample_prompts=("a red circle",), sample_every=2)
    result = fine_tune(asked, progress=False)
    assert result.step == 2
    assert list((run / "samples").rglob("*.png"))
    fine_tune(request(released, pictures, tmp_path / "whole"), progress=False)
    first, second = newest(run), newest(tmp_path / "whole")
    for file, tensors in first.items():
        assert all(torch.equal(tensors[name], second[file][name]) for name in tensors)

    before, after = load_model(released, LOAD), load_model(run, LOAD)
    assert torch.equal(before.backbone.pos_embed, after.backbone.pos_embed)
    average = dict(first["ema.safetensors"])
    assert torch.equal(
        average.pop("pos_embed").flatten(0, 1), after.backbone.pos_embed.flatten(0, 1)
    )
    own = after.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in average.items())
    assert not torch.equal(
        own["final_layer.linear.weight"], before.backbone.state_dict()["final_layer.linear.weight"]
    )
    assert open_checkpoint(run).parts.keys() == open_checkpoint(released).parts.keys()
    assert read_json(run / "model" / "provenance.json")["step"] == 2

    theirs = StableDiffusion3Pipeline.from_pretrained(run / "model")
    assert theirs.tokenizer_3 is not None
    config = after.backbone.config
    example = (
        torch.randn(1, 16, 8, 8),
        torch.tensor([0.4]),
        Conditioning(
            context=torch.randn(1, 5, config.context_dim), pooled=torch.randn(1, config.pooled_dim)
        ),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            diffusers_output(theirs.transformer, *example),
            after.backbone(*example),
            atol=1e-4,
            rtol=1e-4,
        )


def test_a_lora_with_a_prior_that_the_model_draws(
    released: Path, single: Path, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    asked = request(
        single,
        pictures,
        run,
        lora=LoraTraining(rank=2),
        prior_prompt="a picture",
        prior_count=2,
        load=replace(LOAD, tokenizers=released),
    )
    result = fine_tune(asked, progress=False)
    drawn = sorted((run / "prepared").glob("prior_*/*.png"))
    assert [path.name for path in drawn] == ["00000.png", "00001.png"]
    prior = LatentStore(run / "prepared" / "prior_store")
    assert [prior.captions(i) for i in range(2)] == [{"caption": "a picture"}] * 2
    assert all("lora_" in name for name in newest(run)["weights.safetensors"])
    plain = load_model(single, asked.load)
    changed = with_loras(plain, [LoraFile(path=result.model / "lora.safetensors")])
    name = "joint_blocks.0.x_block.attn.qkv.weight"
    assert not torch.equal(changed.backbone.state_dict()[name], plain.backbone.state_dict()[name])

    # What was prepared is kept, and belongs to its settings.
    times = [path.stat().st_mtime_ns for path in drawn]
    longer = replace(asked, max_steps=3, sample_prompts=("a red circle",), sample_every=3)
    fine_tune(longer, progress=False)
    assert (run / "samples" / "step_00000003.png").is_file()
    assert [path.stat().st_mtime_ns for path in drawn] == times
    for change, text in (
        ({"prior_count": 3}, r"pictures of the prior \(--prior, .*\)"),
        ({"resolution_px": 32}, "--resolution"),
    ):
        with pytest.raises(UserError, match=f"was begun with other {text}; a run keeps"):
            fine_tune(replace(asked, **change), progress=False)
    (pictures / "0.txt").write_text("something else")
    with pytest.raises(UserError, match="was begun with other pictures or captions in --data"):
        fine_tune(asked, progress=False)


def test_a_model_of_ours(pictures: Path, tmp_path: Path) -> None:
    for path in pictures.glob("*.txt"):
        path.unlink()
    asked = request(
        "tiny",
        pictures,
        tmp_path / "run",
        max_steps=1,
        load=LoadSettings(),
        caption="noise",
        prior=pictures,
        prior_prompt="any noise",
    )
    result = fine_tune(asked, progress=False)
    model = load_model(result.run)
    assert model.provenance["start_from"]["model"] == "tiny"
    plain = load_model("tiny")
    assert (model.formulation, model.settings.shift) == (plain.formulation, plain.settings.shift)
    store = LatentStore(result.run / "prepared" / "store")
    assert store.captions(0) == {"caption": "noise"}
    prior = LatentStore(result.run / "prepared" / "prior_store")
    assert prior.captions(0) == {"caption": "any noise"}


def test_a_pipeline_is_made_of_a_single_file_too(
    released: Path, single: Path, tmp_path: Path
) -> None:
    target = tmp_path / "parts"
    load = replace(LOAD, tokenizers=released)
    for _ in range(2):  # the second time it is there
        prepare_pipeline(load_model(single, load), str(single), load, target)
    expected = read_json(released / "model_index.json")
    found = read_json(target / "model_index.json")
    assert found.keys() >= {name for name, (library, _) in _components(expected).items() if library}
    for name in _components(found):
        assert (target / name).is_dir()
    scheduler = read_json(target / "scheduler" / "scheduler_config.json")
    assert scheduler["shift"] == 3.0
    assert set(open_checkpoint(target).parts) == {"autoencoder", "clip_l", "clip_g", "t5"}


def test_a_pipeline_says_how_it_is_drawn_where_its_layout_does_not(
    released: Path, pictures: Path, tmp_path: Path
) -> None:
    turbo = tmp_path / "sd3.5-large-turbo"
    turbo.symlink_to(released)
    load = LoadSettings(encoders=("clip_l", "t5"), t5_tokens=TOKENS)
    asked = request(turbo, pictures, tmp_path / "run", max_steps=1, load=load)
    before = load_model(turbo, load)
    fast = replace(before.settings, num_steps=4, guidance_scale=1.0, solver=Heun())
    run = tmp_path / "run"
    target = run / "prepared" / "parts"
    prepare_pipeline(replace(before, settings=fast), str(turbo), load, target)
    result = fine_tune(asked, progress=False)

    after = load_model(result.run)
    assert after.settings == fast
    assert (after.source.encoders, after.source.t5_tokens) == (load.encoders, TOKENS)
    assert after.conditioner.fingerprints() == before.conditioner.fingerprints()
    parts = parts_of(result.run)
    assert parts.conditioner.fingerprints() == before.conditioner.fingerprints()
    # What is asked for goes before it.
    other = load_model(result.run, LoadSettings(encoders=("clip_l", "clip_g")))
    assert (other.source.encoders, other.source.t5_tokens) == (("clip_l", "clip_g"), 0)
    assert load_model(result.run, LoadSettings(t5_tokens=9)).source.t5_tokens == 9


def test_tokenizers_of_a_model_whose_text_encoders_lie_elsewhere(
    released: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "encoders"
    bare.mkdir()
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        (bare / name).symlink_to(released / name)
    load = replace(LOAD, text_encoders=bare)
    target = tmp_path / "parts"
    prepare_pipeline(load_model(released, load), str(released), load, target)
    assert {"tokenizer", "tokenizer_2", "tokenizer_3"} <= read_json(
        target / "model_index.json"
    ).keys()


def test_prior_pictures_are_those_of_their_model(pictures: Path) -> None:
    asked = request("tiny", pictures, Path("out"), prior_prompt="a dog", prior_count=2)
    one, other = tiny_model(), replace(tiny_model(), digest="another")
    hashes = {hash_prior(asked, None, model) for model in (one, other, at_size(one, 32))}
    assert len(hashes) == 3
    # The usual size is the same, said or not.
    said = replace(asked, resolution_px=one.resolution_px)
    assert hash_prior(said, None, one) == hash_prior(asked, None, one)


def test_sample_pictures_leave_no_text_encoders_in_memory(
    released: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = CachedConditioner.unload

    def unload(conditioner: CachedConditioner) -> None:
        load(conditioner)
        loaded.append(conditioner)

    monkeypatch.setattr(CachedConditioner, "unload", unload)
    run = tmp_path / "run"
    fine_tune(request(released, pictures, run, max_steps=1), progress=False)
    drawn = {"sample_prompts": ("a prompt of its own",), "sample_every": 1}
    fine_tune(request(released, pictures, run, max_steps=2, **drawn), progress=False)
    assert loaded
    assert not any(conditioner.is_loaded for conditioner in loaded)
    assert len(list((run / "samples").rglob("*.png"))) == 1


def _components(index: dict) -> dict:
    return {
        name: value
        for name, value in index.items()
        if isinstance(value, list)
        and name not in ("transformer", "image_encoder", "feature_extractor")
    }


def test_what_cannot_be_fine_tuned_is_told_before_anything_is_made(
    released: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    good = request(released, pictures, run)
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "0.png").write_bytes(picture_bytes(random_pixels(0, 64)))
    flux = tmp_path / "flux.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, flux)
    for change, error, text in (
        ({"data": empty}, UserError, "has no pictures"),
        ({"data": bare}, UserError, "has no captions: .*one caption for all of them: --caption"),
        ({"prior": bare}, UserError, "has no captions: .*for all of them: --prior-prompt"),
        ({"model": str(flux)}, CheckpointError, "is a FLUX model"),
        ({"model": "nothing here", "load": LoadSettings()}, UserError, "there is no model"),
        (
            {"resolution_px": 100},
            UserError,
            "--resolution is 100; .* takes multiples of 16 up to 128",
        ),
        ({"resolution_px": 256}, UserError, "takes multiples of 16 up to 128"),
        ({"lora": LoraTraining(rank=500)}, ConfigError, "rank 500 cannot be"),
        ({"out": pictures / "run"}, UserError, "lies in --data .*, where the run's own pictures"),
        ({"out": bare / "run", "prior": bare}, UserError, "lies in --prior "),
        (
            {"batch_size": 1, "prior": pictures},
            ConfigError,
            "batch_size is 1, of which prior.share",
        ),
    ):
        with pytest.raises(error, match=text):
            fine_tune(replace(good, **change), progress=False)
        assert not replace(good, **change).out.exists()
    config = MMDiTConfig(**SIZES, in_channels=33, out_channels=16)
    inpainting = replace(tiny_model(), backbone=MMDiT(config))
    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning, "load_model", lambda name, settings: inpainting)
        with pytest.raises(UserError, match="is for inpainting"):
            fine_tune(good, progress=False)
    with pytest.raises(UserError, match="64×64 px is too small; both sides need at least 128"):
        fine_tune(replace(good, resolution_px=128), progress=False)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"prior": Path("p"), "prior_count": 3}, "give one"),
        ({"prior_count": 3}, "--prior-count needs the prompt"),
        ({"prior_prompt": "a dog"}, "--prior-prompt needs a folder"),
        ({"prior_weight": 0.5}, "--prior-weight goes with pictures of a prior"),
    ],
)
def test_settings_of_the_prior_that_do_not_go_together(given: dict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        request("tiny", Path("data"), Path("out"), **given)


def test_it_trains_at_the_times_that_the_shipped_model_was_trained_at() -> None:
    tuned = fine_tuning_recipe(request("tiny", Path("data"), Path("out")), load_model("tiny"))
    card = read_json(shipped_path("tiny") / "card.json")
    trained = from_json(TrainRecipe, card["recipe"])
    levels = torch.tensor([0.1, 0.5, 0.9])
    times = [
        recipe.shift.along(
            recipe.formulation.path, recipe.formulation.timesteps.from_uniform(levels)
        )
        for recipe in (tuned, trained)
    ]
    torch.testing.assert_close(times[0], times[1])


def test_it_is_sampled_as_the_model_that_it_starts_from() -> None:
    tiny = load_model("tiny")
    settings = replace(tiny.settings, num_steps=9, solver=Heun(), guidance=CFGZeroStar())
    asked = request("tiny", Path("data"), Path("out"))
    recipe = fine_tuning_recipe(asked, replace(tiny, settings=settings))
    assert recipe.sampling == SamplingDefaults.of(settings)
    assert recipe.shift.alpha == settings.shift


@pytest.mark.parametrize(("num", "held_out"), [(3, 0), (19, 0), (20, 2), (100, 10), (9999, 64)])
def test_a_share_is_held_out_where_there_are_enough(num: int, held_out: int) -> None:
    assert fine_tuning._num_held_out(num) == held_out
