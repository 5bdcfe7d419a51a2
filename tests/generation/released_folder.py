"""A whole SD3 pipeline of random parts as diffusers saves it, with the embedded text encoders."""

import json
from functools import cache
from pathlib import Path

import torch
from models.published.small_checkpoints import diffusers_transformer
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from rectiflow.models.mmdit import MMDiTConfig, MMDiTXConfig
from rectiflow.models.shipped import shipped_path

SIZES = {"depth": 2, "context_dim": 192, "pooled_dim": 160, "position_side": 8, "base_side": 4}
CONFIGS: dict[str, MMDiTConfig] = {
    "sd3-medium": MMDiTConfig(**SIZES),
    "sd3.5-medium": MMDiTXConfig(**SIZES, use_qk_norm=True, num_dual_blocks=1),
    "sd3.5-large": MMDiTConfig(**SIZES, use_qk_norm=True),
}
TOKENS = 16


@cache
def diffusers_pipeline(kind: str):
    """A `StableDiffusion3Pipeline` of 64 px, everything of it random but the text encoders."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        StableDiffusion3Pipeline,
    )

    text = shipped_path("text")
    torch.manual_seed(4)
    autoencoder = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=32,
        shift_factor=0.0609,
        scaling_factor=1.5305,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    pipeline = StableDiffusion3Pipeline(
        transformer=diffusers_transformer(CONFIGS[kind]),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=CLIPTextModelWithProjection.from_pretrained(
            text / "text_encoder", dtype=torch.float32
        ),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(
            text / "text_encoder_2", dtype=torch.float32
        ),
        text_encoder_3=T5EncoderModel.from_pretrained(text / "text_encoder_3", dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(text / "tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(text / "tokenizer_2"),
        tokenizer_3=AutoTokenizer.from_pretrained(text / "tokenizer_3"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_released(folder: Path, kind: str = "sd3-medium") -> Path:
    """The folder as `StableDiffusion3Pipeline.save_pretrained` writes it."""
    diffusers_pipeline(kind).save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["vae"]
    return folder
