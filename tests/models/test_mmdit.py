"""MM-DiT against diffusers' transformer, and the laws of its parts."""

import pytest
import torch
from models.small_backbones import CONTEXT_DIM, POOLED_DIM, SIZES, inputs, randomised

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.layers.attention import attention
from rectiflow.models.layers.embeddings import position_grid, sinusoidal_time_embedding
from rectiflow.models.mmdit import MMDiT, MMDiTConfig, MMDiTXConfig


def small(depth: int = 3, **overrides) -> MMDiT:
    return MMDiT(MMDiTConfig(**(SIZES | {"depth": depth} | overrides))).eval()


def diffusers_names(state: dict[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """The state dict that diffusers' transformer expects for the same network."""

    def swap_halves(value: torch.Tensor) -> torch.Tensor:
        shift, scale = value.chunk(2)
        return torch.cat([scale, shift])

    renames = [
        ("x_embedder.proj", "pos_embed.proj"),
        ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
        ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
        ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
        ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
        ("final_layer.linear", "proj_out"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
        ("joint_blocks", "transformer_blocks"),
        ("x_block.attn.proj", "attn.to_out.0"),
        ("context_block.attn.proj", "attn.to_add_out"),
        ("x_block.attn.ln_q", "attn.norm_q"),
        ("x_block.attn.ln_k", "attn.norm_k"),
        ("context_block.attn.ln_q", "attn.norm_added_q"),
        ("context_block.attn.ln_k", "attn.norm_added_k"),
        ("x_block.mlp.fc1", "ff.net.0.proj"),
        ("x_block.mlp.fc2", "ff.net.2"),
        ("context_block.mlp.fc1", "ff_context.net.0.proj"),
        ("context_block.mlp.fc2", "ff_context.net.2"),
        ("x_block.adaLN_modulation.1", "norm1.linear"),
        ("context_block.adaLN_modulation.1", "norm1_context.linear"),
    ]
    projections = {
        "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    }
    swapped = ("final_layer.ada", f"joint_blocks.{depth - 1}.context_block.ada")
    result: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        new = name
        for ours, theirs in renames:
            new = new.replace(ours, theirs)
        fused = next((key for key in projections if key in new), None)
        if fused is not None:
            for target, part in zip(projections[fused], value.chunk(3), strict=True):
                result[new.replace(fused, target)] = part
        else:
            result[new] = swap_halves(value) if name.startswith(swapped) else value
    return result


@pytest.mark.parity
@pytest.mark.parametrize("use_qk_norm", [False, True])
def test_equals_diffusers_transformer(use_qk_norm):
    from diffusers import SD3Transformer2DModel

    depth, side = 3, 8
    ours = small(depth, use_qk_norm=use_qk_norm)
    randomised(ours)
    theirs = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=depth,
        attention_head_dim=64,
        num_attention_heads=depth,
        joint_attention_dim=CONTEXT_DIM,
        caption_projection_dim=64 * depth,
        pooled_projection_dim=POOLED_DIM,
        out_channels=16,
        pos_embed_max_size=side,
        qk_norm="rms_norm" if use_qk_norm else None,
    ).eval()
    state = diffusers_names(ours.state_dict(), depth)
    state["pos_embed.pos_embed"] = ours.pos_embed.flatten(0, 1)[None]
    theirs.load_state_dict(state, strict=True)
    z_t, t, conditioning = inputs()
    with torch.no_grad():
        expected = theirs(
            hidden_states=z_t,
            encoder_hidden_states=conditioning.context,
            pooled_projections=conditioning.pooled,
            timestep=1000 * t,
            return_dict=False,
        )[0]
        actual = ours(z_t, t, conditioning)
    assert expected.std() > 0.5
    assert (actual - expected).abs().max() < 1e-5


def test_blocks_start_as_the_identity_and_the_last_one_ends_the_text():
    model = small()
    model.initialize(torch.Generator().manual_seed(0))
    streams, vector = (torch.randn(2, 5, 192), torch.randn(2, 7, 192)), torch.randn(2, 192)
    for before, after in zip(streams, model.blocks[0](streams, vector), strict=True):
        assert torch.equal(before, after)
    (image,) = model.blocks[-1](streams, vector)
    assert torch.equal(image, streams[-1])


def test_width_and_size_follow_depth_as_released():
    with torch.device("meta"):
        model = MMDiT(MMDiTConfig(depth=24))
    assert model.config.hidden_dim == 1536
    assert sum(p.numel() for p in model.parameters()) == 2_028_328_000


def test_the_released_mmdit_x_has_its_size():
    with torch.device("meta"):
        model = MMDiT(MMDiTXConfig(depth=24, use_qk_norm=True, num_dual_blocks=13))
    assert sum(p.numel() for p in model.parameters()) == 2_243_171_520
    assert [hasattr(block.x_block, "attn2") for block in model.blocks] == [True] * 13 + [False] * 11


@pytest.mark.parametrize("num_dual_blocks", [0, 4])
def test_a_wrong_number_of_second_attentions_teaches(num_dual_blocks):
    with pytest.raises(ConfigError, match=f"={num_dual_blocks} must be from 1 to depth=3"):
        MMDiTXConfig(depth=3, num_dual_blocks=num_dual_blocks)


def test_crop_of_positions_is_centred_and_independent_of_grid_size():
    near = position_grid(6, 64, base_side=4)
    far = position_grid(12, 64, base_side=4)
    assert torch.allclose(far[3:9, 3:9], near, atol=1e-6)
    model = small()
    assert torch.equal(model.cropped_positions(2, 4), model.pos_embed[3:5, 2:6].flatten(0, 1))


@pytest.mark.parametrize(("height_px", "width_px"), [(512, 512), (384, 704), (768, 320)])
def test_positions_of_mixed_aspect_ratios_are_the_papers(height_px, width_px):
    """(p - (h_max - s)/2)·256/S for p = 0 … h_max - 1, cropped in the middle (section 5.3.2)."""
    side, h_max, dim = 512, 48, 16
    s = side // 16
    axis = (torch.arange(h_max) - (h_max - s) / 2) * 256 / side
    rows, columns = height_px // 16, width_px // 16
    top, left = (h_max - rows) // 2, (h_max - columns) // 2
    omega = 10_000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    y, x = (axis[start:][:n, None] * omega for start, n in ((top, rows), (left, columns)))
    angles = x.expand(rows, -1, -1), y[:, None].expand(-1, columns, -1)
    expected = torch.cat([f(part) for part in angles for f in (torch.sin, torch.cos)], dim=2)
    grid = position_grid(h_max, dim, base_side=s)[top : top + rows, left : left + columns]
    assert torch.allclose(grid, expected, atol=1e-5)


def test_a_grid_of_twice_the_side_passes_through_the_smaller_ones_positions():
    near, far = position_grid(8, 64, base_side=4), position_grid(16, 64, base_side=8)
    assert torch.allclose(far[::2, ::2], near, atol=1e-6)


def test_time_embedding_is_cosine_first_and_scaled_by_a_thousand():
    embedding = sinusoidal_time_embedding(torch.tensor([0.0, 0.001]))
    assert torch.equal(embedding[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert embedding[1, 0].item() == pytest.approx(0.5403, abs=1e-4)


def test_bfloat16_attention_equals_the_library_within_rounding():
    generator = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 2, 3, 40, 64, generator=generator)
    exact = attention(q, k, v)
    rounded = attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    assert (rounded - exact).abs().max() < 0.03


def test_conditioning_joins_selects_and_expands():
    _, _, conditioning = inputs()
    both = Conditioning.concat([conditioning, conditioning])
    assert len(both) == 4
    assert torch.equal(both[2:].pooled, conditioning.pooled)
    assert len(conditioning[:1].expand(5)) == 5
    with pytest.raises(ValueError, match="only a batch of one prompt expands, this one has 2"):
        conditioning.expand(3)
    held = conditioning.with_last_as_one(2)
    with pytest.raises(ValueError, match=r"last tokens that stand for \[1, 2\] tokens do not join"):
        Conditioning.concat([conditioning, held])
