"""A LoRA in training: nothing at first, frozen weights untouched, and what PEFT would train."""

import pytest
import torch
from models.lora.small_loras import CONFIG
from models.published.small_checkpoints import diffusers_output, random_mmdit, write_single_file
from models.small_backbones import CONFIGS, inputs, random_backbone
from safetensors.torch import load_file

from rectiflow.base.errors import CheckpointError, ConfigError
from rectiflow.models.lora import (
    add_lora,
    check_lora,
    lora_of,
    lora_tensors,
    merged,
    read_lora,
    save_lora,
)
from rectiflow.models.mmdit import MMDiT
from rectiflow.models.published import convert

RANK = 3
#: diffusers' own names, as its SD3 scripts list them.
TARGETS = [
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
]


def with_lora(model: MMDiT, *, trained: bool = False, seed: int = 0) -> MMDiT:
    """The model with updates; `trained` ones are not zero."""
    generator = torch.Generator().manual_seed(seed)
    add_lora(model, RANK, generator)
    if trained:
        for name, tensor in lora_tensors(model).items():
            if name.endswith("lora_up"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_training_it_computes_the_very_same(dtype: torch.dtype) -> None:
    example = inputs()
    plain = random_mmdit(CONFIG).to(dtype)
    expected = plain(*example)
    assert torch.equal(with_lora(plain)(*example), expected)
    assert all(tensor.dtype == torch.float32 for tensor in lora_tensors(plain).values())


def test_only_updates_have_gradients_and_every_one_has() -> None:
    model = with_lora(random_mmdit(CONFIG), trained=True)
    before = {name: value.clone() for name, value in random_mmdit(CONFIG).state_dict().items()}
    model(*inputs()).square().mean().backward()
    updates = lora_tensors(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == updates.keys()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == updates.keys()
    now = model.state_dict()
    assert now.keys() == before.keys() | updates.keys()
    assert all(torch.equal(now[name], value) for name, value in before.items())


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_saved_and_merged_it_computes_the_same(layout: str, tmp_path) -> None:
    model, plain = with_lora(random_mmdit(CONFIG), trained=True), random_mmdit(CONFIG)
    save_lora(tmp_path / "lora.safetensors", lora_of(CONFIG, lora_tensors(model)), layout)
    lora = read_lora(tmp_path / "lora.safetensors", CONFIG)
    assert lora == lora_of(CONFIG, lora_tensors(model))
    assert lora.rank == RANK
    with torch.no_grad(), merged(plain, [(lora, 1.0)]):
        torch.testing.assert_close(plain(*inputs()), model(*inputs()), atol=1e-5, rtol=1e-5)


@pytest.mark.parity
def test_peft_computes_the_same_and_has_the_same_gradients(tmp_path) -> None:
    from diffusers import SD3Transformer2DModel

    ours = with_lora(random_mmdit(CONFIG), trained=True)
    save_lora(tmp_path / "lora.safetensors", lora_of(CONFIG, lora_tensors(ours)))
    saved = load_file(tmp_path / "lora.safetensors")
    modules = {name.removeprefix("transformer.").rsplit(".lora_", 1)[0] for name in saved}
    assert all(module.endswith(tuple(f".{target}" for target in TARGETS)) for module in modules)
    path = write_single_file(tmp_path / "base.safetensors", random_mmdit(CONFIG))

    convert(path, tmp_path / "base")
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path / "base" / "transformer").eval()
    theirs.load_lora_adapter(saved, prefix="transformer")
    example = inputs(side=(8, 8))
    with torch.no_grad():
        output = ours(*example)
    torch.testing.assert_close(diffusers_output(theirs, *example), output, atol=1e-4, rtol=1e-4)

    z_t, t, conditioning = example
    ours(*example).square().mean().backward()
    theirs.train()
    theirs.requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name)
    theirs(
        hidden_states=z_t,
        encoder_hidden_states=conditioning.context,
        pooled_projections=conditioning.pooled,
        timestep=1000 * t,
        return_dict=False,
    )[0].square().mean().backward()
    # As many of each module as a pair has: of queries, keys and values the first of three.
    names = {
        "joint_blocks.1.x_block.attn.qkv": "transformer_blocks.1.attn.to_q",
        "joint_blocks.0.context_block.attn.proj": "transformer_blocks.0.attn.to_add_out",
    }
    for our_name, their_name in names.items():
        layer, module = ours.get_submodule(our_name), theirs.get_submodule(their_name)
        down, up = (module.get_submodule(f"lora_{x}")["default_0"].weight.grad for x in "AB")
        torch.testing.assert_close(layer.lora_down.grad[:RANK], down, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(layer.lora_up.grad[: len(up)], up, atol=1e-5, rtol=1e-3)


def test_ranks_that_cannot_be_are_told() -> None:
    side = CONFIG.hidden_dim
    for rank in (0, side + 1):
        with pytest.raises(ConfigError, match=f"rank {rank} cannot be.*give a rank from 1 to"):
            check_lora(CONFIG, rank)
    assert len(check_lora(CONFIG, side)) == 4 * CONFIG.depth - 1


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="the model is a DiT; LoRAs are trained for MM-DiTs"):
        add_lora(random_backbone(CONFIGS["dit"]), RANK, torch.Generator())
    with pytest.raises(CheckpointError, match="three sets of weights"):
        check_lora(CONFIGS["mmdit3"], RANK)
