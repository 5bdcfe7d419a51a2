"""Released files give the network that the public library makes of them."""

import pytest
import torch
from models.published.small_checkpoints import (
    SMALL,
    diffusers_output,
    diffusers_transformer,
    mmdit_state,
    random_mmdit,
    write_single_file,
)
from models.small_backbones import inputs
from safetensors.torch import save_file

from rectiflow.models.published import load_mmdit

KINDS = list(SMALL)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_diffusers_saved_gives_its_outputs(kind, tmp_path):
    theirs = diffusers_transformer(SMALL[kind])
    theirs.save_pretrained(tmp_path)
    ours = load_mmdit(tmp_path / "diffusion_pytorch_model.safetensors")
    assert ours.config == SMALL[kind]
    expected = diffusers_output(theirs, *inputs())
    with torch.no_grad():
        actual = ours(*inputs())
    assert expected.std() > 0.5
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_gives_the_network_that_was_saved(kind, tmp_path):
    model = random_mmdit(SMALL[kind])
    loaded = load_mmdit(write_single_file(tmp_path / "model.safetensors", model))
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), model(*inputs()))


def test_tensors_keep_their_type_unless_another_is_asked_for(tmp_path):
    model = random_mmdit(SMALL["sd3.5-medium"])
    path = write_single_file(tmp_path / "model.safetensors", model, dtype=torch.bfloat16)
    loaded = load_mmdit(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.pos_embed.dtype == torch.bfloat16
    wide = load_mmdit(path, dtype=torch.float32)
    for name, tensor in mmdit_state(wide).items():
        assert torch.equal(tensor, mmdit_state(model)[name].bfloat16().float())


def test_a_mapped_network_never_writes_to_its_file(tmp_path):
    path = write_single_file(tmp_path / "model.safetensors", random_mmdit(SMALL["sd3-medium"]))
    before = path.read_bytes()
    model = load_mmdit(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_a_bare_file_is_known_by_its_tensors(tmp_path):
    model = random_mmdit(SMALL["sd3-medium"])
    save_file(mmdit_state(model), tmp_path / "bare.safetensors")
    loaded = load_mmdit(tmp_path / "bare.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), model(*inputs()))
