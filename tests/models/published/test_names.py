"""Every name and shape of the full-size models, in both layouts, against the public library."""

import pytest
import torch

from rectiflow.models.autoencoder import AutoencoderConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published import RELEASED
from rectiflow.models.published.configs import layout_shapes

MODELS = list(RELEASED)
#: Published counts: tensors in a single file and in a folder, parameters without positions.
COUNTS = {
    MODELS[0]: (491, 683, 2_028_328_000),
    MODELS[1]: (665, 909, 2_243_171_520),
    MODELS[2]: (923, 1227, 8_056_627_520),
}


def single_file_shapes(config: MMDiTConfig) -> dict[str, tuple[int, ...]]:
    """The names of the single files as they were published, spelled out."""
    d, depth = config.hidden_dim, config.depth
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, config.position_side**2, d),
        "x_embedder.proj.weight": (d, 16, 2, 2),
        "x_embedder.proj.bias": (d,),
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    linear("y_embedder.mlp.0", d, 2048)
    linear("y_embedder.mlp.2", d, d)
    linear("context_embedder", d, 4096)
    linear("final_layer.linear", 64, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    for i in range(depth):
        for stream in ("x_block", "context_block"):
            block, is_image = f"joint_blocks.{i}.{stream}", stream == "x_block"
            goes_on = is_image or i < depth - 1
            is_dual = is_image and i < config.num_second_attentions
            for attention in ("attn", "attn2") if is_dual else ("attn",):
                linear(f"{block}.{attention}.qkv", 3 * d, d)
                if goes_on:
                    linear(f"{block}.{attention}.proj", d, d)
                if config.use_qk_norm:
                    shapes[f"{block}.{attention}.ln_q.weight"] = (64,)
                    shapes[f"{block}.{attention}.ln_k.weight"] = (64,)
            if goes_on:
                linear(f"{block}.mlp.fc1", 4 * d, d)
                linear(f"{block}.mlp.fc2", d, 4 * d)
            chunks = 9 if is_dual else 6 if goes_on else 2
            linear(f"{block}.adaLN_modulation.1", chunks * d, d)
    return shapes


@pytest.mark.parametrize("name", MODELS)
def test_single_file_names(name):
    shapes = layout_shapes(RELEASED[name], "sai")
    assert shapes == single_file_shapes(RELEASED[name])
    assert len(shapes) == COUNTS[name][0]
    parameters = sum(torch.Size(s).numel() for n, s in shapes.items() if n != "pos_embed")
    assert parameters == COUNTS[name][2]


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_diffusers_names(name):
    from diffusers import SD3Transformer2DModel

    config = RELEASED[name]
    with torch.device("meta"):
        theirs = SD3Transformer2DModel(
            sample_size=128,
            num_layers=config.depth,
            num_attention_heads=config.depth,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=64 * config.depth,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=config.position_side,
            dual_attention_layers=tuple(range(config.num_second_attentions)),
            qk_norm="rms_norm" if config.use_qk_norm else None,
        )
    shapes = layout_shapes(config, "diffusers")
    assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert len(shapes) == COUNTS[name][1]


@pytest.mark.parity
def test_autoencoder_names_in_both_layouts():
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    with torch.device("meta"):
        theirs = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        shapes = layout_shapes(AutoencoderConfig(), "diffusers")
        assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
        assert len(shapes) == 244
        # The library's own conversion of the single file's names arrives at its names.
        single = layout_shapes(AutoencoderConfig(), "sai")
        state = {f"first_stage_model.{name}": torch.empty(shape) for name, shape in single.items()}
        converted = convert_ldm_vae_checkpoint(state, theirs.config)
        assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == shapes
