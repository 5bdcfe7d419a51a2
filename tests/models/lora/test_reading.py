"""Every tool's file is the LoRA that its pairs are; what is no such file is refused in words."""

import json

import pytest
import torch
from models.lora.small_loras import (
    CONFIG,
    EMBEDDER,
    LAST_CONTEXT,
    PROJ,
    QKV,
    by_hand,
    diffusers_tensors,
    kohya_tensors,
    text_tensors,
    values,
    write,
)
from models.published.small_checkpoints import SMALL, random_mmdit
from models.small_backbones import inputs

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.lora import merge, merged, read_lora, text_sizes
from rectiflow.models.lora.homes import mmdit_matrices
from rectiflow.models.published.configs import RELEASED
from rectiflow.models.published.text_configs import RELEASED_TEXT
from rectiflow.models.shipped import shipped_path
from rectiflow.models.text.loading import load_text_folder

D = CONFIG.hidden_dim


@pytest.fixture(scope="module")
def model():
    return random_mmdit(CONFIG)


def pair_of(module, *, rows=D, columns=D, rank=2, names=("lora_down", "lora_up"), dtype=None):
    return {
        f"{module}.{names[0]}.weight": values(rank, columns, seed=1).to(dtype or torch.float32),
        f"{module}.{names[1]}.weight": values(rows, rank, seed=2).to(dtype or torch.float32),
    }


def test_a_kohya_file_is_merging_by_hand(model, tmp_path):
    tensors = kohya_tensors()
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG)
    assert lora.rank == 4
    assert len(lora.parts["mmdit"]) == len(mmdit_matrices(CONFIG)) == len(tensors) // 3
    expected = by_hand(model, tensors, 0.7)
    plain = model(*inputs())
    with torch.no_grad(), merged(model, [(lora, 0.7)]):
        output = model(*inputs())
        for name, value in model.named_parameters():
            assert (value - expected.get_parameter(name)).abs().max() < 1e-5, name
        assert (output - expected(*inputs())).abs().max() < 1e-5
        assert (output - plain).abs().max() > 0.1


@pytest.mark.parametrize(
    "prefix",
    [
        "transformer.",
        "base_model.model.",
        "base_model.model.transformer.",
        "diffusion_model.",
        "model.diffusion_model.",
        "",
        "lora_transformer_",
        "lycoris_",
        "lora_unet_",
    ],
)
def test_every_spelling_of_diffusers_names_is_the_same_lora(prefix, tmp_path):
    plain = diffusers_tensors(modules=r"transformer_blocks\.[12]\..*|(?!transformer).*")
    tensors = {}
    for name, value in plain.items():
        module, _, half = name.removesuffix(".weight").rpartition(".")
        module = module.replace(".", "_") if prefix.endswith("_") else module
        tensors[f"{prefix}{module}.{half}.weight"] = value
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG)
    assert lora == read_lora(write(tmp_path / "b.safetensors", plain), CONFIG)
    assert set(lora.parts["mmdit"]) == {n for n in mmdit_matrices(CONFIG) if "blocks.0" not in n}


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize(
    "ends",
    [
        ("lora.down", "lora.up"),
        ("lora_linear_layer.down", "lora_linear_layer.up"),
        ("lora_A.default", "lora_B.default"),
        ("lora_A.default_0", "lora_B.default_0"),
        ("lora_A.my-style", "lora_B.my-style"),
    ],
)
def test_original_names_and_older_endings(prefix, ends, tmp_path):
    tensors = pair_of(prefix + PROJ.removesuffix(".weight"), names=ends)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG)
    (pair,) = lora.parts["mmdit"][PROJ]
    assert torch.equal(pair.down, values(2, D, seed=1))
    assert torch.equal(pair.up, values(D, 2, seed=2))
    assert pair.alpha == 2


def test_queries_keys_and_values_have_rows_of_their_own(tmp_path):
    tensors = diffusers_tensors(modules=r"transformer_blocks\.1\.attn\.(to_q|to_v|add_k_proj)")
    updates = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG).parts["mmdit"]
    assert [pair.rows for pair in updates[QKV]] == [range(D), range(2 * D, 3 * D)]
    (added,) = updates[QKV.replace("x_block", "context_block")]
    assert added.rows == range(D, 2 * D)


def test_thirds_with_one_down_are_one_pair(tmp_path):
    down = values(2, D)
    tensors = {}
    for i, which in enumerate("qkv"):
        stem = f"transformer.transformer_blocks.1.attn.to_{which}"
        tensors[f"{stem}.lora_A.weight"] = down.clone()
        tensors[f"{stem}.lora_B.weight"] = values(D, 2, seed=i)
    (pair,) = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG).parts["mmdit"][QKV]
    assert torch.equal(pair.up, torch.cat([values(D, 2, seed=i) for i in range(3)]))


@pytest.mark.parametrize("name", ["final_layer.adaLN_modulation.1.weight", LAST_CONTEXT])
def test_shift_and_scale_change_places_in_diffusers_layout_only(name, tmp_path):
    matrix = mmdit_matrices(CONFIG)[name]
    theirs = matrix.entry.diffusers[0].removesuffix(".weight")
    same = pair_of(name.removesuffix(".weight"), rows=2 * D)
    swapped = pair_of(theirs, rows=2 * D)
    ours = read_lora(write(tmp_path / "a.safetensors", same), CONFIG).parts["mmdit"][name][0]
    other = read_lora(write(tmp_path / "b.safetensors", swapped), CONFIG).parts["mmdit"][name][0]
    assert torch.equal(ours.up, values(2 * D, 2, seed=2))
    assert torch.equal(other.up, values(2 * D, 2, seed=2).roll(D, 0))


def test_the_patch_embedders_convolution(tmp_path):
    tensors = kohya_tensors()
    tensors = {name: t for name, t in tensors.items() if "x_embedder" in name}
    assert tensors["lora_unet_x_embedder_proj.lora_down.weight"].ndim == 4
    (pair,) = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG).parts["mmdit"][EMBEDDER]
    assert pair.down.shape == (4, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_pairs_become_float32(dtype, tmp_path):
    tensors = pair_of("lora_unet_context_embedder", columns=48, dtype=dtype)
    path = write(tmp_path / "a.safetensors", tensors)
    (pair,) = read_lora(path, CONFIG).parts["mmdit"]["context_embedder.weight"]
    path.unlink()
    assert torch.equal(pair.down, values(2, 48, seed=1).to(dtype).float())


# --- strength -------------------------------------------------------------------------------------


def alpha_of(path, name=PROJ):
    return read_lora(path, CONFIG).parts["mmdit"][name][0].alpha


def peft_file(path, *, config, prefix="transformer"):
    tensors = {
        f"{prefix}.{name}": value
        for name, value in diffusers_tensors(modules=r".*\.(to_q|to_out\.0)").items()
    }
    data = {f"{prefix}.{key}": value for key, value in config.items()}
    return write(path, tensors, {"lora_adapter_metadata": json.dumps(data)})


def test_alpha_of_peft_is_in_the_metadata(tmp_path):
    config = {"lora_alpha": 8, "alpha_pattern": {"^transformer_blocks.1.attn.to_q": 3}}
    path = peft_file(tmp_path / "a.safetensors", config=config)
    assert (alpha_of(path), alpha_of(path, QKV)) == (8.0, 3.0)
    # Rank-stabilised: the product times alpha/√rank.
    path = peft_file(tmp_path / "b.safetensors", config=config | {"use_rslora": True})
    assert read_lora(path, CONFIG).parts["mmdit"][PROJ][0].scale == pytest.approx(8 / 4**0.5)


def test_alpha_of_a_model_saved_by_itself(tmp_path):
    tensors = diffusers_tensors(modules=r".*to_out\.0")
    metadata = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 12})}
    assert alpha_of(write(tmp_path / "a.safetensors", tensors, metadata)) == 12.0


def test_alpha_beside_a_file_of_peft(tmp_path):
    tensors = {f"base_model.model.{n}": t for n, t in diffusers_tensors(modules=".*0").items()}
    path = write(tmp_path / "adapter_model.safetensors", tensors)
    assert alpha_of(path) == 4.0
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 4}))
    assert alpha_of(path) == 16.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "its lora_adapter_metadata is no LoraConfig of PEFT"),
        ("[1]", "no LoraConfig of PEFT"),
        ('{"lora_alpha": "much"}', "no LoraConfig of PEFT .*its strength|strength is unknown"),
        ('{"lora_alpha": NaN}', "an alpha is not a finite number"),
        ('{"lora_alpha": 1, "alpha_pattern": {"(": 2}}', "no LoraConfig of PEFT"),
    ],
)
def test_a_config_that_is_none(metadata, message, tmp_path):
    tensors = diffusers_tensors(modules=r".*to_out\.0")
    path = write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": metadata})
    with pytest.raises(CheckpointError, match=message):
        read_lora(path, CONFIG)


def split_qkv(metadata):
    """kohya's three pairs of rank 2 in one of rank 6, with the alpha of each."""
    down, up = values(6, D), torch.zeros(3 * D, 6)
    for i in range(3):
        up[i * D : (i + 1) * D, 2 * i : 2 * i + 2] = values(D, 2, seed=i)
    module = "lora_unet_joint_blocks_1_x_block_attn_qkv"
    return {
        f"{module}.lora_down.weight": down,
        f"{module}.lora_up.weight": up,
        f"{module}.alpha": torch.tensor(1.0),
    }, metadata


def test_kohyas_split_queries_keys_and_values_have_the_scale_of_a_part(tmp_path):
    metadata = {"ss_network_args": json.dumps({"split_qkv": "True"})}
    tensors, metadata = split_qkv(metadata)
    pairs = read_lora(write(tmp_path / "a.safetensors", tensors, metadata), CONFIG)
    pairs = pairs.parts["mmdit"][QKV]
    assert [(pair.rank, pair.scale, pair.first_row) for pair in pairs] == [
        (2, 0.5, i * D) for i in range(3)
    ]
    # Without that word, and where the zeros are gone, alpha/rank as everywhere.
    (pair,) = read_lora(write(tmp_path / "b.safetensors", tensors), CONFIG).parts["mmdit"][QKV]
    assert pair.scale == 1 / 6
    full = {n: t + 0.01 if n.endswith("up.weight") else t for n, t in tensors.items()}
    path = write(tmp_path / "c.safetensors", full, metadata)
    assert read_lora(path, CONFIG).parts["mmdit"][QKV][0].scale == 1 / 6


def test_kohyas_arguments_must_be_readable(tmp_path):
    for text in ("{", "[]"):
        path = write(tmp_path / "a.safetensors", split_qkv({})[0], {"ss_network_args": text})
        with pytest.raises(CheckpointError, match="its ss_network_args cannot be read"):
            read_lora(path, CONFIG)


# --- text encoders --------------------------------------------------------------------------------


def test_text_encoders_of_any_size(tmp_path):
    conditioner = load_text_folder(shipped_path("text"))
    sizes = text_sizes(conditioner.encoders)
    tensors = {}
    for part, prefix in (("clip_l", "lora_te1_"), ("clip_g", "lora_te2_"), ("t5", "lora_te3_")):
        tensors |= text_tensors(sizes[part], prefix)
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG, text=sizes)
    assert set(lora.parts) == {"clip_l", "clip_g", "t5"}
    before = conditioner.encode(["a red circle"]).columns()
    merge(random_mmdit(CONFIG), [(lora, 1.0)], encoders=conditioner.encoders)
    after = conditioner.encode(["a red circle"]).columns()
    assert all((after[name] - before[name]).abs().max() > 1e-3 for name in before)


@pytest.mark.parametrize("inner", ["text_model.", ""])
def test_text_encoders_of_diffusers(inner, tmp_path):
    tensors = pair_of(
        f"text_encoder.{inner}encoder.layers.3.self_attn.q_proj",
        rows=768,
        columns=768,
        names=("lora_A", "lora_B"),
    )
    tensors |= pair_of(
        f"text_encoder_2.{inner}encoder.layers.31.mlp.fc1",
        rows=5120,
        columns=1280,
        names=("lora_linear_layer.down", "lora_linear_layer.up"),
    )
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG)
    assert set(lora.parts["clip_l"]) == {"text_model.encoder.layers.3.self_attn.q_proj.weight"}
    assert set(lora.parts["clip_g"]) == {"text_model.encoder.layers.31.mlp.fc1.weight"}


def test_sizes_of_encoders_that_are_left_out_are_sd3s():
    conditioner = load_text_folder(shipped_path("text"), encoders=["clip_l"])
    sizes = text_sizes(conditioner.encoders)
    assert sizes["t5"] == RELEASED_TEXT["t5"]
    assert sizes["clip_l"].width == 64


# --- what is refused ------------------------------------------------------------------------------


def refused(tmp_path, tensors, message, config=CONFIG, metadata=None):
    path = write(tmp_path / "refused.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=message):
        read_lora(path, config)


def test_several_adapters_in_one_file(tmp_path):
    module = PROJ.removesuffix(".weight")
    tensors = pair_of(module, names=("lora_A.first", "lora_B.first"))
    message = "holds several LoRAs, first, second; give each a file of its own"
    second = pair_of(module, names=("lora_A.second", "lora_B.second"))
    refused(tmp_path, tensors | second, message)
    # Halves of two, which would pass for a pair.
    up = {name: value for name, value in second.items() if "lora_B" in name}
    down = {name: value for name, value in tensors.items() if "lora_A" in name}
    refused(tmp_path, down | up, message)


def test_no_lora_at_all(tmp_path):
    refused(tmp_path, {}, r"holds no LoRA: none of its 0 tensors")
    whole = dict(random_mmdit(SMALL["sd3-medium"]).state_dict())
    refused(
        tmp_path, whole, "holds no LoRA: none of its .* a whole model is loaded with load_mmdit"
    )


def test_missing_files_and_pickles(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "none.safetensors", CONFIG)
    torch.save({}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is a pickle"):
        read_lora(tmp_path / "a.safetensors", CONFIG)


def test_keys_without_a_home_are_listed(tmp_path):
    tensors = pair_of("lora_unet_" + PROJ.removesuffix(".weight").replace(".", "_"))
    for name in "abcd":
        tensors |= pair_of(f"lora_unet_{name}")
    refused(
        tmp_path,
        tensors,
        r"4 of its 5 modules are not in this MMDiT-X of depth 3 and width 192: lora_unet_a, "
        r"lora_unet_b, lora_unet_c, lora_unet_d; give a LoRA that was made for this model",
    )


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("transformer.single_transformer_blocks.3.attn.to_q", "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "Stable Diffusion 1, 2 or XL"),
        ("lora_unet_input_blocks_4_1_proj_in", "Stable Diffusion 1, 2 or XL"),
    ],
)
def test_other_families(module, family, tmp_path):
    refused(tmp_path, pair_of(module), f"LoRA for {family}, SD3 and SD3.5 are expected")


def test_another_released_model(tmp_path):
    beyond = pair_of("transformer.transformer_blocks.37.attn.to_q", rows=2432, columns=2432)
    large = r"it is a LoRA for SD3.5-large or -large-turbo; load that model"
    refused(tmp_path, beyond, f"1 of its 1 modules are not in .*{large}", RELEASED["SD3-medium"])
    within = pair_of("transformer.transformer_blocks.7.attn.to_q", rows=2432, columns=2432)
    refused(
        tmp_path,
        within,
        rf"to_q changes a matrix of \[2432, 2432\], in this MMDiT-X of depth 24 and width 1536 it "
        rf"is \[1536, 1536\]; {large}",
        RELEASED["SD3.5-medium"],
    )
    second = pair_of("transformer.transformer_blocks.7.attn2.to_q", rows=1536, columns=1536)
    refused(tmp_path, second, "LoRA for SD3.5-medium; load", RELEASED["SD3-medium"])


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lycoris_x.hada_w1_a", "LoHa"),
        ("lycoris_x.lokr_w1", "LoKr"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("transformer.x.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_x.lora_mid.weight", "LoCon with a core"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("transformer.x.lora_B.bias", "LoRA with biases"),
        ("lora_unet_x.diff_b", "whole differences"),
    ],
)
def test_other_kinds_of_adapters(key, kind, tmp_path):
    tensors = pair_of("context_embedder", columns=48) | {key: values(4)}
    refused(tmp_path, tensors, f"is a {kind} file, as {key} tells")


def test_other_tensors_are_not_left_out(tmp_path):
    tensors = pair_of("context_embedder", columns=48) | {"diffusion_model.note.weight": values(4)}
    refused(tmp_path, tensors, "1 of its tensors are neither half of a pair nor an alpha")


def test_half_pairs(tmp_path):
    whole = pair_of("context_embedder", columns=48)
    down, up = whole.items()
    refused(tmp_path, dict([down]), "has context_embedder.lora_down.weight but not its up matrix")
    refused(tmp_path, dict([up]), "but not its down matrix; the file is incomplete")
    alone = {"context_embedder.alpha": torch.tensor(1.0)}
    refused(tmp_path, alone, "has context_embedder.alpha but not its down and up matrix")


def test_one_place_twice(tmp_path):
    tensors = pair_of("context_embedder", columns=48)
    both = tensors | pair_of("context_embedder", columns=48, names=("lora_A", "lora_B"))
    refused(tmp_path, both, "two tensors for one place; remove one")
    twice = tensors | pair_of("transformer.context_embedder", columns=48)
    refused(tmp_path, twice, "changes context_embedder.weight twice, under two names")
    shared = pair_of("joint_blocks.1.x_block.attn.qkv", rows=3 * D)
    shared |= pair_of("transformer_blocks.1.attn.to_k")
    refused(tmp_path, shared, "attn.qkv.weight twice")


@pytest.mark.parametrize(
    ("down", "up"),
    [((2, 48), (D, 3)), ((48,), (D,)), ((2, 48), (D, 2, 1, 1)), ((0, 48), (D, 0))],
)
def test_pairs_that_do_not_multiply(down, up, tmp_path):
    tensors = {
        "context_embedder.lora_down.weight": values(*down),
        "context_embedder.lora_up.weight": values(*up),
    }
    refused(tmp_path, tensors, "do not multiply; they should be")


def test_numbers_that_are_none(tmp_path):
    tensors = pair_of("context_embedder", columns=48)
    up, alpha = "context_embedder.lora_up.weight", "context_embedder.alpha"
    refused(tmp_path, tensors | {up: torch.full((D, 2), torch.nan)}, f"{up} holds NaN or infinity")
    refused(tmp_path, tensors | {up: torch.ones(D, 2, dtype=torch.int8)}, f"{up} is stored as I8")
    refused(tmp_path, tensors | {alpha: torch.tensor(torch.nan)}, f"{alpha} is nan; an alpha is a")
    refused(tmp_path, tensors | {alpha: torch.ones(2)}, rf"{alpha} has the shape \[2\]")


def test_two_alphas_that_differ(tmp_path):
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 4.01})}
    tensors = pair_of("context_embedder", columns=48)
    alpha = {"context_embedder.alpha": torch.tensor(4.01).bfloat16()}
    read_lora(write(tmp_path / "a.safetensors", tensors | alpha, metadata), CONFIG)
    alpha = {"context_embedder.alpha": torch.tensor(5.0)}
    refused(tmp_path, tensors | alpha, "is 5.0, but the file's config says 4.01", metadata=metadata)
