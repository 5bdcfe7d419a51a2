"""There and back again, nothing changes."""

from dataclasses import replace

import pytest
import torch
from models.published.small_checkpoints import (
    SMALL,
    SMALL_AUTOENCODER,
    random_autoencoder,
    random_mmdit,
    write_single_file,
)
from safetensors.torch import load_file, save_file

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.published import (
    convert,
    load_autoencoder,
    load_mmdit,
    open_checkpoint,
    part_of,
    save_diffusers_folder,
    save_single_file,
    saving,
)
from rectiflow.models.published.checkpoint import scheduler_of
from rectiflow.models.published.stored import write_safetensors


def equal_files(first, second) -> bool:
    """Same names, types, shapes and bits."""
    first, second = load_file(first), load_file(second)
    return set(first) == set(second) and all(
        (t.dtype, t.shape) == (second[n].dtype, second[n].shape)
        and torch.equal(t.contiguous().view(torch.uint8), second[n].contiguous().view(torch.uint8))
        for n, t in first.items()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", SMALL)
def test_there_and_back_from_either_layout(kind, dtype, tmp_path):
    model, autoencoder = random_mmdit(SMALL[kind]), random_autoencoder()
    single = write_single_file(tmp_path / "a.safetensors", model, autoencoder, dtype=dtype)
    convert(single, tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c.safetensors")
    assert equal_files(single, tmp_path / "c.safetensors")
    convert(tmp_path / "c.safetensors", tmp_path / "d")
    for name in ("transformer", "vae"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "d" / file).read_bytes()
        file = f"{name}/config.json"
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "d" / file).read_bytes()
    # The second time round even the files' bytes are the same.
    convert(tmp_path / "d", tmp_path / "e.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "e.safetensors").read_bytes()


def test_eight_bit_floats_and_mixed_types_stay_what_they_are(tmp_path):
    path = write_single_file(tmp_path / "a.safetensors", random_mmdit(SMALL["sd3-medium"]))
    state = load_file(path)
    for i, name in enumerate(sorted(state)):
        if ".qkv." not in name:
            types = (torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.float64)
            state[name] = state[name].to(types[i % 4])
    save_file(state, path)
    convert(path, tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c.safetensors")
    assert equal_files(path, tmp_path / "c.safetensors")


def test_what_tensors_cannot_tell_survives_both_layouts(tmp_path):
    mmdit = random_mmdit(MMDiTConfig(**sizes(head_dim=32, base_side=4)))
    config = replace(
        SMALL_AUTOENCODER, num_norm_groups=16, latent_shift=0.25, latent_scale=2.0, base_channels=16
    )
    parts = {"mmdit": part_of(mmdit), "autoencoder": part_of(random_autoencoder(config))}
    save_single_file(tmp_path / "a.safetensors", parts)
    convert(tmp_path / "a.safetensors", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c.safetensors")
    for path in (tmp_path / "a.safetensors", tmp_path / "b", tmp_path / "c.safetensors"):
        assert load_mmdit(path).config == mmdit.config
        assert load_autoencoder(path).config == config
    # A released model's file needs no metadata, and has none.
    plain = {"mmdit": part_of(random_mmdit(SMALL["sd3-medium"]))}
    save_single_file(tmp_path / "d.safetensors", plain)
    assert b"__metadata__" not in (tmp_path / "d.safetensors").read_bytes()


def test_a_folders_scheduler_survives_the_single_file(tmp_path):
    parts = {"mmdit": part_of(random_mmdit(SMALL["sd3-medium"]))}
    scheduler = scheduler_of(2.5) | {"base_shift": 0.5}
    save_diffusers_folder(tmp_path / "a", parts, scheduler=scheduler)
    convert(tmp_path / "a", tmp_path / "files" / "b.safetensors")
    convert(tmp_path / "files" / "b.safetensors", tmp_path / "c")
    # The folder "files" is split files, as many have them.
    for path in (tmp_path / "a", tmp_path / "files" / "b.safetensors", tmp_path / "files"):
        found = open_checkpoint(path)
        assert (found.scheduler, found.shift) == (scheduler, 2.5)
    files = (tmp_path / f"{name}/scheduler/scheduler_config.json" for name in "ac")
    assert len({file.read_bytes() for file in files}) == 1
    damaged = tmp_path / "d.safetensors"
    write_safetensors(damaged, parts["mmdit"].tensors, {"rectiflow.scheduler": "[1"})
    with pytest.raises(CheckpointError, match=r"config under rectiflow\.scheduler that cannot be"):
        open_checkpoint(damaged)


def sizes(**overrides):
    return {
        "depth": 3,
        "context_dim": 48,
        "pooled_dim": 24,
        "position_side": 8,
        "base_side": 8,
    } | overrides


def test_nothing_is_written_over(tmp_path):
    path = write_single_file(tmp_path / "a.safetensors", random_mmdit(SMALL["sd3-medium"]))
    before = path.read_bytes()
    with pytest.raises(UserError, match="it exists; choose another place or remove it"):
        convert(path, path)
    with pytest.raises(UserError, match="the folder is not empty; choose another or remove it"):
        convert(path, tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(("content", "text"), [(None, "cannot read"), ("[]", "no JSON object")])
def test_a_tokenizer_without_a_config_is_named_before_weights_are_written(
    content, text, tmp_path, monkeypatch
):
    source = tmp_path / "source"
    for name in ("tokenizer", "tokenizer_2"):
        (source / name).mkdir(parents=True)
        (source / name / "tokenizer_config.json").write_text("{}")
    config = source / "tokenizer_2" / "tokenizer_config.json"
    config.unlink() if content is None else config.write_text(content)
    parts = {"mmdit": part_of(random_mmdit(SMALL["sd3-medium"]))}
    monkeypatch.setattr(saving, "write_safetensors", lambda *_: pytest.fail("written"))
    with pytest.raises(UserError, match=text) as caught:
        save_diffusers_folder(tmp_path / "out", parts, tokenizers=source)
    assert str(config) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_three_sets_of_weights_have_no_released_layout():
    model = MMDiT(MMDiTConfig(**sizes(), num_clip_tokens=4))
    with pytest.raises(CheckpointError, match="three sets of weights has no released layout"):
        part_of(model)


def test_a_read_tensor_of_parts_that_differ_is_refused(tmp_path):
    path = write_single_file(tmp_path / "a.safetensors", random_mmdit(SMALL["sd3-medium"]))
    convert(path, tmp_path / "b")
    weights = tmp_path / "b" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    name = "transformer_blocks.0.attn.to_q.weight"
    state[name] = state[name].half()
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"parts of one tensor differ: F16 .* F32"):
        open_checkpoint(tmp_path / "b")


PEAK = """
import sys
from pathlib import Path
from rectiflow.models.published import convert, load_mmdit

def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

source, small, target = sys.argv[1:]
load_mmdit(small)  # what is there once is no part of a model
before = peak_bytes()
convert(source, target)
print(peak_bytes() - before)
model = load_mmdit(source)
print(sum(float(p.detach().sum()) for p in model.parameters()), file=sys.stderr)
print(peak_bytes() - before)
"""


@pytest.mark.parametrize("layout", ["single file", "folder"])
def test_peak_memory_is_that_of_the_weights(layout, tmp_path, run_python):
    big, small = tmp_path / "big.safetensors", tmp_path / "small.safetensors"
    write_single_file(small, random_mmdit(SMALL["sd3-medium"]))
    write_single_file(big, MMDiT(MMDiTConfig(**sizes(depth=4, width=512))))
    size = big.stat().st_size
    assert size > 120e6
    if layout == "folder":
        convert(big, tmp_path / "folder")
        big = tmp_path / "folder"
    (tmp_path / "peak.py").write_text(PEAK)

    other = tmp_path / ("other" if layout == "single file" else "other.safetensors")
    done = run_python(str(tmp_path / "peak.py"), str(big), str(small), str(other))
    assert done.returncode == 0, done.stderr
    converting, loading = map(int, done.stdout.split())
    # A conversion holds a few megabytes at a time; then every weight was read once.
    assert converting < 0.5 * size
    assert 0.9 * size < loading < 1.1 * size
