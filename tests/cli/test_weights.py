"""`rectiflow inspect` and `rectiflow convert`, from files to words and files."""

import json
import os
from dataclasses import replace

import pytest
import torch
from models.published.small_checkpoints import (
    SMALL,
    random_autoencoder,
    random_mmdit,
    write_single_file,
)
from safetensors.torch import load_file, save_file
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.cli.main import main
from rectiflow.models.backbones import build_backbone
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.flops import num_parameters
from rectiflow.models.published import RELEASED
from rectiflow.models.published.configs import layout_shapes
from rectiflow.training.loop import train


def test_a_single_file_goes_into_a_folder_and_is_described(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    model = random_mmdit(SMALL["sd3.5-medium"])
    write_single_file(path, model, random_autoencoder(), dtype=torch.float16)
    save_file(load_file(path) | {"model.ema_decay": torch.zeros(1)}, path)
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path / 'folder'}: MM-DiT, autoencoder"
    assert out[1] == "left out: 1 tensors of no part, such as model.ema_decay"
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
        "model_index.json",
        "transformer",
        "vae",
    ]
    for source, names, dtypes in (
        (path, "Stability AI's single-file names", "F16"),
        (tmp_path / "folder", "diffusers' names", "F16"),
    ):
        assert main(["inspect", str(source)]) == 0
        text = capsys.readouterr().out
        rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
        assert "MMDiT-X, of no released size" in text
        assert "autoencoder, of no released size" in text
        assert rows["names"] == names
        assert rows["types"] == dtypes
        assert rows["num_dual_blocks"] == "2"
        assert "not in it: text encoder CLIP-L, text encoder CLIP-G, text encoder T5" in text
        count = sum(p.numel() for p in model.parameters())
        assert f"parameters           {count:,}" in text


@pytest.mark.parametrize("layout", ["sai", "diffusers"])
@pytest.mark.parametrize("name", RELEASED)
def test_a_full_size_model_is_named_from_its_header(name, layout, tmp_path, capsys):
    """The file has all of its bytes, none of which is on the disk or ever read."""
    header, end = {}, 0
    for tensor, shape in layout_shapes(RELEASED[name], layout).items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{RELEASED[name].title}, as {name}" in out
    assert f"parameters           {num_parameters(RELEASED[name]):,}" in out
    assert f"size                 {end / 1e9:.3f} GB" in out


def test_a_model_of_ours_is_described_whatever_its_backbone(tmp_path, capsys):
    recipe = tiny_recipe(max_steps=1)
    sizes = {"depth": 1, "context_dim": 32, "pooled_dim": 24, "position_side": 8, "base_side": 4}
    backbone = UViTConfig(width=64, **sizes)
    train(replace(recipe, backbone=backbone), FakeFeed(), tmp_path / "run", progress=False)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "UViT, trained by rectiflow" in out
    count = sum(p.numel() for p in build_backbone(backbone).parameters())
    assert f"parameters           {count:,}" in out
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "is a UViT; only an MM-DiT has a released layout" in capsys.readouterr().err


def test_what_is_no_model_is_one_line(tmp_path, capsys):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_joint_blocks_0.lora_down.weight": torch.zeros(2)}, path)
    for arguments in (["inspect", str(path)], ["convert", str(path), str(tmp_path / "out")]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "is a LoRA, which changes a model and is none by itself" in err
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]
