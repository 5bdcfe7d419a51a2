"""What a file is, and one clear line for each that is something else."""

import json
import math
import os
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

from rectiflow.base.config import to_json
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
    path.write_bytes(whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1))
    assert "is damaged: its header is not that of a safetensors file" in refused(path)
    path.write_bytes(whole.replace(b'"dtype"', b'"dtypo"', 1))
    assert "is damaged" in refused(path)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "C64", "F4"])
def test_numbers_that_are_not_read_are_named(dtype, path):
    path.write_bytes(safetensors_bytes({"a": entry(dtype=dtype)}, 8))
    assert f"'a' stores numbers as '{dtype}', which rectiflow does not read; give" in refused(path)


def safetensors_bytes(header: object, num_bytes: int) -> bytes:
    """A file with this header, a text or what becomes JSON, and so many bytes of data."""
    text = header if isinstance(header, str) else json.dumps(header)
    return len(text).to_bytes(8, "little") + text.encode() + bytes(num_bytes)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


A, B = json.dumps(entry()), json.dumps(entry(data_offsets=[8, 16]))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param('{"a":' * 20_000, id="deep"),
        pytest.param('{"a":' + "[" * 20_000, id="deep list"),
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1e999]}}',
        '{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
        {"a": entry(shape=[2.0])},
        {"a": entry(shape=[1.9])},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=[-1, -2])},
        {"a": entry(shape="2")},
        {"a": entry(data_offsets=["0", 8])},
        {"a": entry(data_offsets=[0, 8.7])},
        {"a": entry(data_offsets=[0, 8, 8])},
        {"a": entry(data_offsets={"0": 0, "8": 8})},
        {"a": entry(dtype=["F32"])},
        {"a": []},
        f'{{"a": {A}, "a": {A}}}',
        f'{{"a": {A}, "a": {B}}}',
        f'{{"__metadata__": {{}}, "a": {A}, "__metadata__": {{}}}}',
        f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {A}}}',
        '{"a": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}',
        {"__metadata__": 3, "a": entry()},
    ],
)
def test_a_header_that_is_none_is_refused_in_a_line(header, path):
    path.write_bytes(safetensors_bytes(header, 8))
    text = refused(path)
    assert "is damaged: its header is not that of a safetensors file" in text
    assert len(text) < 500 + len(str(path))


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


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x_embedder.proj.weight", [192, 0, 2, 2]),
        ("x_embedder.proj.weight", [2**62, 2**62, 0, 0]),
        ("x_embedder.proj.weight", [192, 16, 0, 0]),
        ("pos_embed", [1, 0, 192]),
        ("joint_blocks.0.x_block.attn.ln_q.weight", [0]),
        ("context_embedder.weight", [0, 5]),
        ("final_layer.linear.weight", []),
    ],
)
def test_sizes_that_are_none_are_refused(name, shape, path):
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    count = math.prod(shape)
    for each in header.values():  # nothing but a header, and what the one tensor needs
        each |= {"shape": [1] * len(each["shape"]), "data_offsets": [0, 0]}
    full = f"model.diffusion_model.{name}"
    header[full] = header[next(iter(header))] | {"shape": shape}
    end = 0
    for each in header.values():
        begin, end = end, end + 4 * math.prod(each["shape"])
        each["data_offsets"] = [begin, end]
    assert count < 100
    path.write_bytes(safetensors_bytes(header, end))
    assert "holds no MM-DiT of a known size" in refused(path)


def sparse(path, header: dict[str, list[int]]) -> None:
    """A file of these tensors' shapes, in 8 bits, whose data take no room on the disk."""
    entries, end = {}, 0
    for name, shape in header.items():
        begin, end = end, end + math.prod(shape)
        entries[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [begin, end]}
    start = safetensors_bytes(entries, 0)
    path.write_bytes(start)
    os.truncate(path, len(start) + end)


def test_sizes_that_overflow_are_refused(path):
    shapes = {name: list(tensor.shape) for name, tensor in load_file(path).items()}
    shapes["model.diffusion_model.x_embedder.proj.weight"] = [2**36, 16, 2, 2]
    sparse(path, shapes)
    assert "holds no MM-DiT of a known size" in refused(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"depth": 10**9}, "depth is 1000000000 with"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"width": 10**30, "head_dim": 10**30}, "of a known size"),
        ({"position_side": 10**12}, "of a known size"),
        ({"base_side": 0}, "base_side is 0"),
        ({"context_dim": -1}, "context_dim is -1"),
    ],
)
def test_a_config_in_the_metadata_asks_for_no_endless_network(changes, text, path):
    config = {"kind": "MMDiTConfig"} | to_json(SMALL["sd3-medium"]) | changes
    save_file(load_file(path), path, {"rectiflow.mmdit": json.dumps(config)})
    assert text in refused(path)


@pytest.mark.parametrize("text", ['{"kind": "DiTConfig"}', "{", '{"kind": "MMDiTConfig"}'])
def test_a_config_in_the_metadata_must_be_one(text, path):
    save_file(load_file(path), path, metadata={"rectiflow.mmdit": text})
    assert "holds a config under rectiflow.mmdit that cannot be read" in refused(path)
