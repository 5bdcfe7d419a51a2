"""The three text encoders of a checkpoint as a `TextConditioner`, through transformers' classes.

Released single files hold no tokenizers: they come from a folder beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from rectiflow.base.errors import UserError
from rectiflow.models.pretrained import quiet_transformers
from rectiflow.models.published.checkpoint import Part
from rectiflow.models.published.folder import open_checkpoint
from rectiflow.models.published.text_configs import (
    POSITION_IDS,
    PROJECTION,
    RELEASED_TEXT,
    T5_TABLES,
    CLIPTextSize,
    T5TextSize,
    TextSize,
)
from rectiflow.models.text.conditioner import (
    FOLDERS,
    EncoderSize,
    TextConditioner,
    TextConditionerConfig,
)
from rectiflow.models.text.encoded import ENCODERS
from rectiflow.models.text.loading import SD3_LENGTHS, load_tokenizer


def load_conditioner(
    path: Path | str,
    *,
    tokenizers: Path | str,
    encoders: Sequence[str] = ENCODERS,
    lengths: Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextConditioner:
    """The text encoders of a checkpoint with the tokenizers of a folder.

    Args:
        path: a file or folder that `open_checkpoint` knows.
        tokenizers: a folder with `tokenizer`, `tokenizer_2` and `tokenizer_3`, as released.
        encoders: which to load; the others give zeros.
        lengths: tokens per encoder; SD3's when None.
        dtype: what the encoders compute in, whatever the file stores.

    Raises:
        UserError: a file or tokenizer is missing, or a name is not an encoder's.
        CheckpointError: the checkpoint is damaged, or holds no such encoder.
    """
    for name in encoders:
        if name not in ENCODERS:
            raise UserError(f"unknown text encoder {name!r}; choose among {', '.join(ENCODERS)}")
    checkpoint, lengths = open_checkpoint(path), lengths or SD3_LENGTHS
    parts = {name: checkpoint.part(name) for name in ENCODERS if name in encoders}
    # An encoder that is left out keeps its size: its own where the file has it, else SD3's.
    configs = RELEASED_TEXT | {
        name: part.config for name, part in checkpoint.parts.items() if name in ENCODERS
    }
    sizes = {name: _encoder_size(config, lengths[name]) for name, config in configs.items()}
    return TextConditioner(
        TextConditionerConfig(clip_l=sizes["clip_l"], clip_g=sizes["clip_g"], t5=sizes["t5"]),
        {name: load_text_encoder(part, dtype) for name, part in parts.items()},
        {name: load_tokenizer(Path(tokenizers) / FOLDERS[name][1]) for name in parts},
    )


def load_text_encoder(part: Part, dtype: torch.dtype) -> Any:
    """transformers' model of a part."""
    tensors = {name: tensor.load(dtype) for name, tensor in part.tensors.items()}
    tensors.pop(POSITION_IDS, None)
    if isinstance(part.config, T5TextSize):
        model_class, config_class = T5EncoderModel, T5Config
        # One tensor under two names.
        table = next(tensors.pop(name) for name in T5_TABLES if name in tensors)
        tensors.pop(T5_TABLES[1], None)
        tensors[T5_TABLES[0]] = table
    else:
        assert isinstance(part.config, CLIPTextSize)
        model_class, config_class = CLIPTextModelWithProjection, CLIPTextConfig
        if PROJECTION not in tensors:
            tensors[PROJECTION] = torch.eye(part.config.pooled_dim, dtype=dtype)
    with quiet_transformers():
        model = model_class.from_pretrained(
            None,
            config=config_class(**part.config.to_transformers()),
            state_dict=tensors,
            dtype=dtype,
        )
    return model.eval()


def _encoder_size(config: Any, length: int) -> EncoderSize:
    size: TextSize = config
    pooled_width = 0 if isinstance(size, T5TextSize) else size.pooled_dim
    return EncoderSize(length=length, width=size.width, pooled_width=pooled_width)
