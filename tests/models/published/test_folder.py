"""Folders of every kind are opened as what they are."""

import json
import math
import shutil

import pytest
import torch
from models.published.small_checkpoints import (
    SMALL,
    autoencoder_state,
    diffusers_output,
    diffusers_transformer,
    random_autoencoder,
    random_mmdit,
    write_single_file,
)
from models.small_backbones import inputs
from safetensors.torch import load_file, save_file
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.files import write_json
from rectiflow.models.mmdit import MMDiT
from rectiflow.models.model_folder import find_model_folder
from rectiflow.models.published import (
    load_autoencoder,
    load_mmdit,
    open_checkpoint,
    part_of,
    save_diffusers_folder,
    save_single_file,
)
from rectiflow.models.shipped import shipped_path
from rectiflow.training.loop import train

KIND = "sd3.5-medium"


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline's folder of ours; its parts are what `part_of` was given."""
    parts = {"mmdit": random_mmdit(SMALL[KIND]), "autoencoder": random_autoencoder()}
    save_diffusers_folder(tmp_path / "p", {name: part_of(part) for name, part in parts.items()})
    return tmp_path / "p"


@pytest.mark.parity
def test_a_sharded_component_that_diffusers_saved(tmp_path):
    theirs = diffusers_transformer(SMALL[KIND])
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size="4MB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    for path in (tmp_path, tmp_path / "transformer"):
        ours = load_mmdit(path)
        assert ours.config == SMALL[KIND]
        with torch.no_grad():
            actual = ours(*inputs())
        assert (actual - diffusers_output(theirs, *inputs())).abs().max() < 1e-5


@pytest.mark.parity
def test_an_autoencoder_that_diffusers_saved(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 64, 128),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.3,
        scaling_factor=0.7,
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "vae")
    ours = load_autoencoder(tmp_path)
    assert (ours.config.latent_shift, ours.config.latent_scale) == (0.3, 0.7)
    assert (ours.config.num_norm_groups, ours.config.channel_multipliers) == (16, (1, 2, 2, 4))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        raw = theirs.encode(images).latent_dist
        latents = ours.encode(images).mean
        assert raw.mean.std() > 0.05
        assert (latents - (raw.mean - 0.3) * 0.7).abs().max() < 1e-5
        expected = theirs.decode(latents / 0.7 + 0.3).sample
        assert (ours.decode(latents) - expected).abs().max() < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("kind", SMALL)
def test_diffusers_loads_what_we_save(kind, tmp_path):
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    model, autoencoder = random_mmdit(SMALL[kind]), random_autoencoder()
    parts = {"mmdit": part_of(model), "autoencoder": part_of(autoencoder)}
    save_diffusers_folder(tmp_path / "p", parts)
    theirs, report = SD3Transformer2DModel.from_pretrained(
        tmp_path / "p", subfolder="transformer", output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        ours = model(*inputs())
    assert (ours - diffusers_output(theirs.eval(), *inputs())).abs().max() < 1e-5
    theirs, report = AutoencoderKL.from_pretrained(
        tmp_path / "p", subfolder="vae", output_loading_info=True
    )
    assert not any(report.values())
    latents = torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        pixels = theirs.decode(latents / 1.5305 + 0.0609).sample
        assert (autoencoder.decode(latents) - pixels).abs().max() < 1e-5


def test_a_variant_is_taken_where_nothing_else_is(pipeline):
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert open_checkpoint(pipeline).part("mmdit").config == SMALL[KIND]


def test_split_files_are_one_checkpoint(tmp_path):
    autoencoder = random_autoencoder()
    write_single_file(tmp_path / "model.safetensors", random_mmdit(SMALL[KIND]))
    save_file(autoencoder_state(autoencoder), tmp_path / "vae.safetensors")
    assert set(open_checkpoint(tmp_path).parts) == {"mmdit", "autoencoder"}
    loaded = load_autoencoder(tmp_path)
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    write_single_file(tmp_path / "second.safetensors", random_mmdit(SMALL["sd3-medium"]))
    with pytest.raises(UserError, match=r"model\.safetensors and .*second\.safetensors hold the"):
        open_checkpoint(tmp_path)


def test_our_own_model_has_the_closed_forms_positions(tmp_path):
    run = tmp_path / "run"
    train(tiny_recipe(max_steps=1), FakeFeed(), run, progress=False)
    own = MMDiT(tiny_recipe().backbone)
    for path in (run, find_model_folder(run)):
        loaded = load_mmdit(path, dtype=torch.float32)
        assert loaded.config == own.config
        assert torch.equal(loaded.pos_embed, own.pos_embed)
    save_single_file(tmp_path / "own.safetensors", open_checkpoint(run).parts)
    again = load_mmdit(tmp_path / "own.safetensors", dtype=torch.float32)
    assert again.config == own.config
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_what_a_folder_may_lack(tmp_path, pipeline):
    def refused() -> str:
        with pytest.raises(UserError) as caught:
            load_mmdit(pipeline)
        return str(caught.value)

    config = pipeline / "transformer" / "config.json"
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    config.write_text("[]")
    assert "config.json holds no JSON object" in refused()
    config.unlink()
    assert open_checkpoint(pipeline).part("mmdit").config == SMALL[KIND]
    state = load_file(weights)
    state.pop("proj_out.bias")
    save_file(state, weights)
    assert "lacks 1 of the" in refused()
    assert "the first is proj_out.bias" in refused()
    index = weights.with_name(f"{weights.name}.index.json")
    weights.unlink()
    index.write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    assert "leads out of its folder" in refused()
    index.write_text("{}")
    assert "lists no shards" in refused()
    index.unlink()
    assert "holds no weights; rectiflow reads diffusion_pytorch_model.safetensors" in refused()
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    assert "holds pickles, which can run any code when opened" in refused()
    config.write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(CheckpointError, match="describes FluxTransformer2DModel; rectiflow knows"):
        load_mmdit(pipeline / "transformer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights: neither .safetensors files, nor the"):
        load_mmdit(tmp_path / "empty")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("transformer", "sample_size", 0),
        ("transformer", "sample_size", -16),
        ("transformer", "sample_size", "16"),
        ("transformer", "sample_size", None),
        ("vae", "norm_num_groups", 0),
        ("vae", "norm_num_groups", -4),
        ("vae", "norm_num_groups", 2.0),
        ("vae", "scaling_factor", math.inf),
        ("vae", "scaling_factor", math.nan),
        ("vae", "scaling_factor", 10**400),
        ("vae", "scaling_factor", "1.5"),
        ("vae", "scaling_factor", True),
        ("vae", "shift_factor", -math.inf),
    ],
)
def test_a_config_with_a_value_that_is_none_is_refused(part, key, value, pipeline):
    path = pipeline / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=r"of a known size: .*; give a released model") as e:
        open_checkpoint(pipeline)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", [0, -64, "64", 7, 1.5])
def test_heads_that_a_config_has_no_room_for_are_refused(value, tmp_path):
    model = part_of(random_mmdit(SMALL["sd3-medium"]))  # without norms that tell a head's size
    save_diffusers_folder(tmp_path / "p", {"mmdit": model})
    path = tmp_path / "p" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": value}))
    with pytest.raises(CheckpointError, match="holds no MM-DiT of a known size"):
        open_checkpoint(tmp_path / "p")


@pytest.mark.parametrize("value", [[], {}, 3, ["SD3Transformer2DModel"]])
@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json"])
def test_a_class_that_is_no_name_is_refused(file, value, pipeline):
    (pipeline / file).write_text(json.dumps({"_class_name": value}))
    for path in (pipeline, (pipeline / file).parent):
        with pytest.raises(CheckpointError, match="as _class_name, no name of a class; fetch"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (3, "lists no shards"),
        (None, "lists no shards"),
        ([], "lists no shards"),
        ("", "leads out of its folder"),
        (".", "leads out of its folder"),
        ("..", "leads out of its folder"),
        ("/etc/passwd", "leads out of its folder"),
        ("a\0.safetensors", "leads out of its folder"),
        ("\ud800.safetensors", "leads out of its folder"),
        ("x" * 5000, "cannot read"),
    ],
)
def test_shards_are_files_of_the_folder(name, text, pipeline):
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=text):
        open_checkpoint(pipeline)


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        ("", [], "holds no JSON object"),
        ("sampling", {}, r"has None as sampling.shift, no positive number; export"),
        ("sampling", {"shift": "3"}, "has '3' as sampling.shift"),
        ("sampling", {"shift": -1}, "has -1 as sampling.shift"),
        ("formulation", {}, "does not say which path its formulation has"),
        ("formulation", {"path": []}, "does not say which path its formulation has"),
        ("formulation", {"path": {"kind": []}}, "does not say which path its formulation has"),
        (
            "formulation",
            {"path": {"kind": "RectifiedFlowPath"}},
            "does not say which prediction its formulation has",
        ),
        ("formulation", [], "model.json: formulation: expected dict"),
        ("backbone", {"kind": "MMDiTConfig", "depth": 0}, "model.json: "),
    ],
)
def test_a_card_that_says_too_little_is_refused(place, value, text, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shipped_path("tiny-mmdit"), folder)
    card = json.loads((folder / "model.json").read_text())
    write_json(folder / "model.json", card | {place: value} if place else value)
    with pytest.raises((CheckpointError, ConfigError), match=text) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model_index.json", "StableDiffusionXLPipeline"),
        ("transformer/config.json", "FluxTransformer2DModel"),
        ("vae/config.json", "AutoencoderKLWan"),
    ],
)
def test_a_pipeline_of_another_family_is_told_by_its_class(pipeline, file, name):
    write_json(pipeline / file, {"_class_name": name})
    with pytest.raises(CheckpointError, match=f"is a {name}, which is another architecture; rect"):
        open_checkpoint(pipeline)


def test_a_component_of_another_family_is_told_by_its_tensors(pipeline):
    path = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({"single_transformer_blocks.0.norm.linear.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="is a FLUX model, which is another architecture"):
        open_checkpoint(pipeline)
