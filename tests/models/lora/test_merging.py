"""Merging is one sum in float32, and unmerging leaves the very bits that were there before."""

import pytest
import torch
from models.lora.small_loras import CONFIG, EMBEDDER, PROJ, QKV, pair, small_lora
from models.published.small_checkpoints import SMALL, random_mmdit, write_single_file
from models.small_backbones import random_backbone

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.lora import Lora, merge, merged, sharing_copy, unmerge
from rectiflow.models.published import load_mmdit
from rectiflow.models.shipped import shipped_path
from rectiflow.models.text.loading import load_text_folder

D = CONFIG.hidden_dim
TEXT = "text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def model():
    return random_mmdit(CONFIG)


def bits(model):
    return {
        name: (value.data_ptr(), value.detach().clone().view(torch.uint8))
        for name, value in model.named_parameters()
    }


def same(first, second):
    return all(
        first[n][0] == second[n][0] and torch.equal(first[n][1], second[n][1]) for n in first
    )


def delta(lora, name=PROJ):
    (one,) = lora.parts["mmdit"][name]
    return one.scale * (one.up @ one.down)


def test_a_stack_is_a_weighted_sum(model):
    first, second = small_lora(), small_lora(seed=5, alpha=1.0)
    before = model.get_parameter(PROJ).detach().clone()
    merge(model, [(first, 0.5), (second, -2.0), (first, 0.0)])
    expected = before + 0.5 * delta(first) - 2 * delta(second)
    assert (model.get_parameter(PROJ) - expected).abs().max() < 1e-6


def test_only_the_rows_of_a_pair_change(model):
    lora = Lora(config=CONFIG, parts={"mmdit": {QKV: (pair(D, D, first=D),)}})
    before = model.get_parameter(QKV).detach().clone()
    merge(model, [(lora, 1.0)])
    is_changed = (model.get_parameter(QKV) != before).any(dim=1)
    assert is_changed[D : 2 * D].all()
    assert not is_changed[:D].any()
    assert not is_changed[2 * D :].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_the_sum_is_rounded_once(model, dtype):
    lora = small_lora()
    parameter = model.get_parameter(PROJ)
    parameter.data = parameter.data.to(dtype)
    expected = (parameter.float() + 0.3 * delta(lora)).to(dtype)
    merge(model, [(lora, 0.3)])
    assert parameter.dtype == dtype
    off = (parameter.float() - expected.float()).abs()
    # The order of the product may move a value that lies between two.
    assert (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerging_leaves_the_very_bits(model, dtype):
    model.to(dtype)
    before = bits(model)
    originals = merge(model, [(small_lora(), 1.0), (small_lora(EMBEDDER), 1.0)])
    assert not same(before, bits(model))
    assert originals.num_bytes == (D * D + D * 64) * dtype.itemsize
    unmerge(originals)
    assert same(before, bits(model))


def test_merged_lasts_as_long_as_the_with(model):
    before = bits(model)
    with pytest.raises(RuntimeError, match="stop"), merged(model, [(small_lora(), 1.0)]):
        assert not same(before, bits(model))
        raise RuntimeError("stop")
    assert same(before, bits(model))
    with merged(model, [(small_lora(), 1.0)]):
        inside = bits(model)
        with merged(model, [(small_lora(seed=3), 1.0)]):
            assert not same(inside, bits(model))
        assert same(inside, bits(model))
    assert same(before, bits(model))


def test_weights_of_a_file_are_never_written(tmp_path):
    path = write_single_file(tmp_path / "model.safetensors", random_mmdit(CONFIG))
    content = path.read_bytes()
    model, other = load_mmdit(path), load_mmdit(path)
    before = bits(model)
    with merged(model, [(small_lora(), 1.0)]):
        assert torch.equal(other.get_parameter(PROJ).view(torch.uint8), before[PROJ][1])
    assert same(before, bits(model))
    assert path.read_bytes() == content


def test_a_parameter_stays_the_same_object(model):
    parameter = model.get_parameter(PROJ)
    parameter.requires_grad_(True)
    merge(model, [(small_lora(), 1.0)])
    assert model.get_parameter(PROJ) is parameter
    assert parameter.requires_grad
    assert parameter.grad_fn is None


def test_merging_for_inference(model):
    before = bits(model)
    with torch.inference_mode(), merged(model, [(small_lora(), 1.0)]):
        assert not same(before, bits(model))
    assert same(before, bits(model))
    merge(model, [(small_lora(), 1.0)])
    # Training may go on.
    model.get_parameter(PROJ).square().sum().backward()


def test_text_encoders_merge_too(model):
    conditioner = load_text_folder(shipped_path("text"), encoders=["clip_l"])
    lora = Lora(config=CONFIG, parts={"clip_l": {TEXT: (pair(256, 64),)}})
    weight = conditioner.encoders["clip_l"].get_parameter(TEXT)
    before = weight.detach().clone()
    with merged(model, [(lora, 2.0)], encoders=conditioner.encoders):
        one = lora.parts["clip_l"][TEXT][0]
        assert (weight - (before + 2 * one.up @ one.down)).abs().max() < 1e-6
    assert torch.equal(weight, before)


def test_nothing_to_merge(model):
    assert merge(model, []).replaced == ()
    assert merge(model, [(small_lora(), 0.0)]).num_bytes == 0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(model, weight):
    before = bits(model)
    with pytest.raises(UserError, match=f"the weight of a LoRA is {weight}; give a finite"):
        merge(model, [(small_lora(), 1.0), (small_lora(), weight)])
    assert same(before, bits(model))


def test_a_text_encoder_that_is_not_at_hand(model):
    lora = Lora(config=CONFIG, parts={"t5": {"a.weight": (pair(4, 4),)}})
    conditioner = load_text_folder(shipped_path("text"), encoders=["clip_l"])
    for encoders in (None, conditioner.encoders):
        with pytest.raises(UserError, match="the text encoder t5, which is not at hand"):
            merge(model, [(lora, 1.0)], encoders=encoders)


def test_another_model():
    with pytest.raises(CheckpointError, match=r"changes joint_blocks.* which this model lacks"):
        merge(random_backbone(SMALL["sd3-medium"]).x_embedder, [(small_lora(), 1.0)])
    model = random_mmdit(CONFIG)
    model.get_parameter(PROJ).data = torch.zeros(D, D - 1)
    with pytest.raises(CheckpointError, match=rf"as a matrix of \[{D}, {D}\], in this model it is"):
        merge(model, [(small_lora(), 1.0)])


def test_a_text_encoder_of_another_size(model):
    conditioner = load_text_folder(shipped_path("text"), encoders=["clip_l"])
    lora = Lora(config=CONFIG, parts={"clip_l": {TEXT: (pair(128, 64),)}})
    with pytest.raises(CheckpointError, match=r"clip_l.text_model.*as a matrix of \[128, 64\]"):
        merge(model, [(lora, 1.0)], encoders=conditioner.encoders)


def test_a_sum_that_is_too_large(model):
    model.half()
    before = bits(model)
    with pytest.raises(UserError, match=r"is too large for torch.float16; lower their weights"):
        merge(model, [(small_lora(EMBEDDER), 1.0), (small_lora(), 1e9)])
    assert same(before, bits(model))


def test_unmerging_out_of_order(model):
    first = merge(model, [(small_lora(), 1.0)])
    second = merge(model, [(small_lora(), 1.0)])
    with pytest.raises(UserError, match="is not what the merge left; unmerge in the reverse order"):
        unmerge(first)
    unmerge(second)
    unmerge(first)
    with pytest.raises(UserError, match="once each"):
        unmerge(first)


def test_what_is_merged_into_a_copy_the_original_never_sees(model):
    before = bits(model)
    copy = sharing_copy(model)
    assert same(bits(copy), before)
    merge(copy, [(small_lora(), 1.0)])
    assert same(bits(model), before)
    moved = {name for name, value in copy.named_parameters() if value.data_ptr() != before[name][0]}
    assert moved == {PROJ}
