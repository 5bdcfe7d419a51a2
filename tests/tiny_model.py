"""A whole model of random parts, made in a second, for tests of generation and evaluation."""

from __future__ import annotations

from functools import cache

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from rectiflow.flow import rectified_flow
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.text.conditioner import EncoderSize, TextConditioner, TextConditionerConfig
from rectiflow.models.text.encoded import ENCODERS
from rectiflow.models.text.tokenizers import build_clip_tokenizer, build_t5_tokenizer

LENGTH = 12
CAPTIONS = (
    "a photo of a red circle and a blue square",
    "a photo of three green crosses above two rings left right of below",
    'the word "CAT" in yellow',
)


@cache
def tiny_conditioner(encoders: tuple[str, ...] = ENCODERS) -> TextConditioner:
    torch.manual_seed(1)
    tokenizers = {
        "clip_l": build_clip_tokenizer(CAPTIONS, length=LENGTH, pad="eos"),
        "clip_g": build_clip_tokenizer(CAPTIONS, length=LENGTH, pad="first"),
        "t5": build_t5_tokenizer(CAPTIONS, length=LENGTH),
    }
    sizes = {"clip_l": 16, "clip_g": 32}
    clips = {
        name: CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizers[name]),
                hidden_size=width,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                projection_dim=width,
                bos_token_id=tokenizers[name].bos_token_id,
                eos_token_id=tokenizers[name].eos_token_id,
                pad_token_id=tokenizers[name].pad_token_id,
            )
        )
        for name, width in sizes.items()
    }
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizers["t5"]),
            d_model=48,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    config = TextConditionerConfig(
        t5=EncoderSize(length=LENGTH, width=48),
        **{
            name: EncoderSize(length=LENGTH, width=width, pooled_width=width)
            for name, width in sizes.items()
        },
    )
    towers = {**clips, "t5": t5}
    return TextConditioner(
        config, {name: towers[name] for name in encoders}, {n: tokenizers[n] for n in encoders}
    )


def tiny_autoencoder() -> Autoencoder:
    torch.manual_seed(2)
    config = AutoencoderConfig(
        base_channels=8,
        channel_multipliers=(1, 1, 2, 2),
        num_blocks=1,
        num_norm_groups=4,
        latent_shift=0.0,
        latent_scale=2.5,
    )
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    # Nearly certain posteriors, as trained ones are: the second half of the channels is logvar.
    autoencoder.encoder.conv_out.bias[config.latent_channels :] -= 8.0
    return autoencoder


def tiny_backbone(*, depth: int = 2, patch_size: int = 2) -> MMDiT:
    """Random where a fresh MM-DiT is zero, so that prompts and noise both show in the result."""
    config = MMDiTConfig(
        depth=depth,
        context_dim=48,
        pooled_dim=48,
        patch_size=patch_size,
        position_side=16,
        base_side=8,
    )
    torch.manual_seed(3)
    backbone = MMDiT(config).eval()
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return backbone


def tiny_model(*, depth: int = 2, patch_size: int = 2, num_steps: int = 3) -> Model:
    return Model(
        name="test",
        digest="0" * 64,
        backbone=tiny_backbone(depth=depth, patch_size=patch_size),
        formulation=rectified_flow(),
        autoencoder=tiny_autoencoder(),
        conditioner=tiny_conditioner(),
        settings=SamplingSettings(num_steps=num_steps, guidance_scale=3.0),
        world="small",
        resolution_px=64,
        provenance={},
    )
