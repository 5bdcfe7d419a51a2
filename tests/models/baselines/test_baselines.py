"""Equal weights make the backbones equal, and their blocks are the published ones."""

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone, randomised

from rectiflow.models.baselines.uvit import ModulatedResidualBlock, UViTConfig
from rectiflow.models.layers.blocks import CrossBlock, StreamBlock


@torch.no_grad()
def test_dit_is_an_mmdit_whose_two_sets_of_weights_are_one():
    dit, mmdit = random_backbone(CONFIGS["dit"]), random_backbone(CONFIGS["mmdit"])
    state = mmdit.state_dict()
    for name, value in dit.state_dict().items():
        if not name.startswith("transformer_blocks."):
            state[name] = value
            continue
        _, index, rest = name.split(".", 2)
        for stream in ("x_block", "context_block"):
            target = f"joint_blocks.{index}.{stream}.{rest}"
            if target in state:
                # The last text block's modulation has the first two chunks only.
                state[target] = value[: len(state[target])]
    mmdit.load_state_dict(state)
    assert (dit(*inputs()) - mmdit(*inputs())).abs().max() < 1e-4


@torch.no_grad()
def test_three_sets_with_equal_text_weights_are_two():
    three, two = random_backbone(CONFIGS["mmdit3"]), random_backbone(CONFIGS["mmdit"])
    state = {
        name: two.state_dict()[
            name.replace("clip_block", "context_block").replace("t5_b", "context_b")
        ]
        for name in three.state_dict()
    }
    three.load_state_dict(state)
    assert (three(*inputs()) - two(*inputs())).abs().max() < 1e-5
    # And they are weights of their own.
    three.blocks[0].t5_block.attn.qkv.weight.mul_(2.0)
    assert (three(*inputs()) - two(*inputs())).abs().max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("has_cross", [False, True])
@torch.no_grad()
def test_blocks_equal_diffusers_pixart_block(has_cross):
    from diffusers.models.attention import BasicTransformerBlock

    dim, head_dim = 96, 48
    theirs = BasicTransformerBlock(
        dim,
        2,
        head_dim,
        cross_attention_dim=dim if has_cross else None,
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    ).eval()
    ours = (CrossBlock if has_cross else StreamBlock)(dim, head_dim=head_dim, use_qk_norm=False)
    randomised(ours)
    stream = ours.x_block if has_cross else ours
    q, k, v = stream.attn.qkv.weight.chunk(3)
    q_bias, k_bias, v_bias = stream.attn.qkv.bias.chunk(3)
    state = {
        "scale_shift_table": torch.zeros(6, dim),
        "attn1.to_q.weight": q,
        "attn1.to_k.weight": k,
        "attn1.to_v.weight": v,
        "attn1.to_q.bias": q_bias,
        "attn1.to_k.bias": k_bias,
        "attn1.to_v.bias": v_bias,
        "attn1.to_out.0.weight": stream.attn.proj.weight,
        "attn1.to_out.0.bias": stream.attn.proj.bias,
        "ff.net.0.proj.weight": stream.mlp.fc1.weight,
        "ff.net.0.proj.bias": stream.mlp.fc1.bias,
        "ff.net.2.weight": stream.mlp.fc2.weight,
        "ff.net.2.bias": stream.mlp.fc2.bias,
    }
    if has_cross:
        cross = ours.cross_attn
        k, v = cross.kv.weight.chunk(2)
        k_bias, v_bias = cross.kv.bias.chunk(2)
        state |= {
            "attn2.to_q.weight": cross.q.weight,
            "attn2.to_q.bias": cross.q.bias,
            "attn2.to_k.weight": k,
            "attn2.to_k.bias": k_bias,
            "attn2.to_v.weight": v,
            "attn2.to_v.bias": v_bias,
            "attn2.to_out.0.weight": cross.proj.weight,
            "attn2.to_out.0.bias": cross.proj.bias,
        }
    theirs.load_state_dict(state, strict=True)
    x, context, vector = torch.randn(2, 12, dim), torch.randn(2, 7, dim), torch.randn(2, dim)
    modulation = stream.adaLN_modulation(vector)
    expected = theirs(
        x, encoder_hidden_states=context if has_cross else None, timestep=modulation[:, None]
    )
    actual = ours(x, context, vector) if has_cross else ours(x, vector)
    assert (actual - expected).abs().max() < 1e-4


def test_only_the_asked_tokens_leave_a_block():
    block = StreamBlock(64, head_dim=32, use_qk_norm=False)
    randomised(block)
    x, vector = torch.randn(2, 9, 64), torch.randn(2, 64)
    torch.testing.assert_close(block(x, vector, num_out=4), block(x, vector)[:, -4:])


def test_levels_halve_the_width_in_whole_groups():
    assert UViTConfig(depth=3).level_channels == (96,)
    assert UViTConfig(depth=24, patch_size=8).level_channels == (192, 384, 768)
    assert UViTConfig(depth=1, width=100, head_dim=50).level_channels == (48,)


def test_a_residual_block_starts_as_its_shortcut():
    x, vector = torch.randn(2, 16, 4, 6), torch.randn(2, 32)
    assert torch.equal(ModulatedResidualBlock(16, 16, vector_dim=32)(x, vector), x)
    widening = ModulatedResidualBlock(16, 24, vector_dim=32)
    assert torch.equal(widening(x, vector), widening.shortcut(x))


@torch.no_grad()
def test_skips_carry_each_levels_results_across():
    model = random_backbone(CONFIGS["uvit-two-levels"])
    for level in model.up:
        level.grow.weight.zero_()
        level.grow.bias.zero_()
    # Nothing comes up from below, yet the finest level's own results still reach the output.
    z_t, t, conditioning = inputs()
    assert (model(z_t + 1.0, t, conditioning) - model(z_t, t, conditioning)).abs().max() > 1e-2
