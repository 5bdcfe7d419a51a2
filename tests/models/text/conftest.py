"""A conditioner of random transformers models, as small as they get."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from rectiflow.models.text.conditioner import EncoderSize, TextConditioner, TextConditionerConfig
from rectiflow.models.text.tokenizers import build_clip_tokenizer, build_t5_tokenizer

LENGTH = 12
CAPTIONS = [
    "a photo of three circles and a red circle above a blue square",
    "a green cross top left and a white ring bottom right, center",
    'the word "CAT" in red',
]


@pytest.fixture
def random_conditioner() -> TextConditioner:
    tokenizers = {
        "clip_l": build_clip_tokenizer(CAPTIONS, length=LENGTH, pad="eos"),
        "clip_g": build_clip_tokenizer(CAPTIONS, length=LENGTH, pad="first"),
        "t5": build_t5_tokenizer(CAPTIONS, length=LENGTH + 4),
    }
    torch.manual_seed(0)
    encoders = {
        "clip_l": _clip(tokenizers["clip_l"], 32, "quick_gelu"),
        "clip_g": _clip(tokenizers["clip_g"], 48, "gelu"),
        "t5": T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizers["t5"]),
                d_model=96,
                d_kv=24,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        ),
    }
    config = TextConditionerConfig(
        clip_l=EncoderSize(length=LENGTH, width=32, pooled_width=32),
        clip_g=EncoderSize(length=LENGTH, width=48, pooled_width=48),
        t5=EncoderSize(length=LENGTH + 4, width=96),
        block_size=8,
    )
    return TextConditioner(config, encoders, tokenizers)


def _clip(tokenizer, width: int, activation: str) -> CLIPTextModelWithProjection:
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            projection_dim=width,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Default initialisation leaves norms at one and biases at zero, which hides a skipped norm.
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model
