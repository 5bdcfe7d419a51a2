"""What a file is, and one clear line for each that is something else."""

import pickle

import pytest
import torch
from models.published.small_checkpoints import (
    SMALL,
    mmdit_state,
    random_mmdit,
    write_single_file,
)
from safetensors.torch import load_file, save_file

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.published import load_mmdit, open_checkpoint


@pytest.fixture
def path(tmp_path):
    return write_single_file(tmp_path / "model.safetensors", random_mmdit(SMALL["sd3-medium"]))


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        load_mmdit(path)
    text = str(caught.value)
    assert text.startswith(("cannot ", str(path)))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("layout", ["sai", "diffusers"])
@pytest.mark.parametrize("kind", SMALL)
def test_layout_and_configuration_follow_from_the_tensors(kind, layout, tmp_path):
    model = random_mmdit(SMALL[kind])
    path = write_single_file(tmp_path / "model.safetensors", model)
    part = open_checkpoint(path).part("mmdit")
    if layout == "diffusers":
        tensors = {name: tensor.load() for name, tensor in part.in_layout("diffusers").items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs.safetensors")
        part = open_checkpoint(tmp_path / "theirs.safetensors").part("mmdit")
    assert (part.layout, part.config) == (layout, SMALL[kind])
    for name, tensor in mmdit_state(model).items():
        assert torch.equal(part.own_tensors()[name].load(), tensor), name


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"], "a LoRA, which changes"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA, which changes"),
        (["controlnet_blocks.0.weight", "transformer_blocks.0.attn.qkv.weight"], "a ControlNet"),
        (["double_blocks.0.img_attn.qkv.weight"], "a FLUX model, which is another"),
        (
            ["single_transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_q.bias"],
            "a FLUX model",
        ),
        (
            ["model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.1.model.ln.bias"],
            "an SDXL model",
        ),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.a"],
            "a Stable Diffusion 1 or 2 model",
        ),
        (["decoder.up.0.block.0.conv1.weight", "post_quant_conv.weight"], "the autoencoder of"),
        (["some.other.weight"], "holds no part of an SD3 model: it has 1 tensors, among them some"),
    ],
)
def test_other_families_are_named(names, family, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    assert family in refused(path)


def test_a_cut_file_is_noticed_at_any_length(path):
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for length, text in (
        (0, "is empty; fetch the file again"),
        (5, "is no safetensors file: it starts with"),
        (header // 2, f"its header should have {header:,} bytes"),
        (len(whole) - 1, f"it should have {len(whole):,} bytes by its header, it has"),
    ):
        path.write_bytes(whole[:length])
        assert text in refused(path)
    path.write_bytes(whole + b"\0")
    assert "is cut or damaged" in refused(path)


def test_a_damaged_header_is_noticed(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"F32"', b'"F99"', 1))
    assert "unknown number type F99" in refused(path)
    path.write_bytes(whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1))
    assert "is damaged: its header is not that of a safetensors file" in refused(path)
    path.write_bytes(whole.replace(b'"dtype"', b'"dtypo"', 1))
    assert "is damaged" in refused(path)


def test_pickles_and_pointers_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("it was opened",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    assert "is a pickle (.pt, .pth, .ckpt, .bin), which can run any code" in refused(path)
    torch.save({"a": torch.zeros(2)}, path)
    assert "is a pickle as torch.save writes it" in refused(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a pointer of git-lfs" in refused(path)
    assert "cannot read" in refused(tmp_path / "absent.safetensors")


def change(path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors by name ("/" for "."), or leave them out."""
    state = load_file(path)
    for name, value in tensors.items():
        full = "model.diffusion_model." + name.replace("/", ".")
        state.pop(full, None)
        if value is not None:
            state[full] = value
    save_file(state, path)


def test_missing_extra_and_wrong_tensors_are_named(path):
    whole = path.read_bytes()
    for changes, text in (
        (
            {"joint_blocks/1/x_block/mlp/fc1/bias": None},
            "lacks 1 of the 71 tensors of an MM-DiT of depth 3, the first is "
            "joint_blocks.1.x_block.mlp.fc1.bias; fetch the file again",
        ),
        ({"pos_embed": None}, "lacks pos_embed, which every MM-DiT has"),
        (
            {"final_layer/linear/weight": torch.zeros(32, 192)},
            "final_layer.linear.weight has the shape [32, 192], an MM-DiT of depth 3 has [64, 192]",
        ),
        (
            {"register/weight": torch.zeros(3)},
            "has 1 tensors more than an MM-DiT of depth 3, the first is register.weight",
        ),
        (
            {"x_embedder/proj/bias": torch.zeros(192, dtype=torch.int8)},
            "x_embedder.proj.bias is stored as I8, a quantised format",
        ),
        ({"pos_embed": torch.zeros(1, 60, 192)}, "60 positions do not form a square grid"),
        (
            {"joint_blocks/1/x_block/attn2/qkv/weight": torch.zeros(3)},
            "blocks [1] have a second attention; only a model where the first blocks do",
        ),
    ):
        path.write_bytes(whole)
        change(path, **changes)
        assert text in refused(path), text


@pytest.mark.parametrize("number", ["3", "1000000000000"])
def test_a_gap_between_blocks_is_noticed_however_wide(number, path):
    state = load_file(path)
    prefix = "model.diffusion_model.joint_blocks."
    state = {name.replace(f"{prefix}2.", f"{prefix}{number}."): t for name, t in state.items()}
    save_file(state, path)
    assert "lacks joint_blocks.2, which every MM-DiT has; fetch it again" in refused(path)


def test_a_file_without_the_part_says_what_it_holds(path):
    with pytest.raises(CheckpointError, match=r"holds no autoencoder, only: MM-DiT; give the"):
        open_checkpoint(path).part("autoencoder")


@pytest.mark.parametrize("text", ['{"kind": "DiTConfig"}', "{", '{"kind": "MMDiTConfig"}'])
def test_a_config_in_the_metadata_must_be_one(text, path):
    save_file(load_file(path), path, metadata={"rectiflow.mmdit": text})
    assert "holds a config under rectiflow.mmdit that cannot be read" in refused(path)
