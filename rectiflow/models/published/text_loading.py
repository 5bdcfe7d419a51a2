"""The three text encoders of a checkpoint as a `TextConditioner`, through transformers' classes.

Released single files hold no tokenizers: they come from a folder beside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from rectiflow.base.cache import cached_sha256
from rectiflow.base.config import to_json
from rectiflow.models.pretrained import quiet_transformers
from rectiflow.models.published.checkpoint import Checkpoint, Part
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
    describe_tokenizer,
)
from rectiflow.models.text.encoded import ENCODERS, choose_encoders
from rectiflow.models.text.loading import SD3_LENGTHS, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class StoredEncoders:
    """The text encoders of a checkpoint, found but not loaded; `tokenizers` by the same names."""

    parts: dict[str, Part]
    config: TextConditionerConfig
    tokenizers: dict[str, PreTrainedTokenizerBase]
    dtype: torch.dtype

    def load(self) -> TextConditioner:
        """The encoders with their tokenizers."""
        return TextConditioner(
            self.config,
            {name: load_text_encoder(part, self.dtype) for name, part in self.parts.items()},
            self.tokenizers,
        )

    @property
    def sizes(self) -> dict[str, TextSize]:
        """By name, as the files have them."""
        configs = {name: part.config for name, part in self.parts.items()}
        return {n: c for n, c in configs.items() if isinstance(c, CLIPTextSize | T5TextSize)}

    def identity(self) -> str:
        """Equal for what gives equal states: files by their hash, tokenizers, lengths and type."""
        described = {
            "dtype": str(self.dtype),
            "config": to_json(self.config),
            "files": {name: self._hashes(name) for name in self.parts},
            "tokenizers": {n: describe_tokenizer(t) for n, t in self.tokenizers.items()},
        }
        return _hash(described)

    def fingerprints(self) -> dict[str, str]:
        """The same of each encoder, whichever others are in use; the lengths are those of all."""
        return {
            name: _hash(
                {
                    "dtype": str(self.dtype),
                    "config": to_json(self.config),
                    "files": self._hashes(name),
                    "tokenizer": describe_tokenizer(self.tokenizers[name]),
                }
            )
            for name in self.parts
        }

    def _hashes(self, name: str) -> list[str]:
        return [cached_sha256(file) for file in self.parts[name].files()]


def find_text_encoders(
    checkpoint: Checkpoint,
    *,
    tokenizers: Path | str | None,
    encoders: Sequence[str] = ENCODERS,
    t5_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    context_dim: int | None = None,
) -> StoredEncoders:
    """What `load_conditioner` loads, with the same arguments and errors.

    `tokenizers` may be None where no encoder is used. `context_dim` is the width that a T5 has
    which is not there; SD3's when None.
    """
    parts = {name: checkpoint.part(name) for name in choose_encoders(encoders)}
    loaded = {} if tokenizers is None else _load_tokenizers(Path(tokenizers), tuple(parts))
    if t5_tokens is None:
        longest = loaded["t5"].model_max_length if "t5" in loaded else SD3_LENGTHS["t5"]
        t5_tokens = min(SD3_LENGTHS["t5"], longest)
    # An encoder that is left out keeps its size: its own where the file has it, else SD3's.
    configs = RELEASED_TEXT | {
        name: part.config
        for name, part in checkpoint.parts.items()
        if isinstance(part.config, CLIPTextSize | T5TextSize)
    }
    sizes = {name: _encoder_size(config, t5_tokens) for name, config in configs.items()}
    if "t5" not in checkpoint.parts and context_dim is not None:
        sizes["t5"] = EncoderSize(length=t5_tokens, width=context_dim)
    return StoredEncoders(
        parts=parts,
        config=TextConditionerConfig(
            clip_l=sizes["clip_l"], clip_g=sizes["clip_g"], t5=sizes["t5"]
        ),
        tokenizers=loaded,
        dtype=dtype,
    )


def load_conditioner(
    path: Path | str,
    *,
    tokenizers: Path | str,
    encoders: Sequence[str] = ENCODERS,
    t5_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextConditioner:
    """The text encoders of a checkpoint with the tokenizers of a folder.

    Args:
        path: a file or folder that `open_checkpoint` knows.
        tokenizers: a folder with `tokenizer`, `tokenizer_2` and `tokenizer_3`, as released.
        encoders: which to load; the others give zeros.
        t5_tokens: what T5 cuts and pads a prompt to, SD3's 256 or its tokenizer's most where that
            is less unless said; may be 0 where it is left out. CLIP's length is that of its table
            of positions.
        dtype: what the encoders compute in, whatever the file stores.

    Raises:
        UserError: a file or tokenizer is missing, or a name is not an encoder's.
        CheckpointError: the checkpoint is damaged, or holds no such encoder.
    """
    return find_text_encoders(
        open_checkpoint(path),
        tokenizers=tokenizers,
        encoders=encoders,
        t5_tokens=t5_tokens,
        dtype=dtype,
    ).load()


def _load_tokenizers(folder: Path, encoders: Sequence[str]) -> dict[str, PreTrainedTokenizerBase]:
    """Of each encoder; CLIP-G's is CLIP-L's where both have the same words.

    Released folders let CLIP-G's tokenizer pad with "!" (id 0), and for that take each "!" of a
    prompt for padding too. The model was trained with "!" as the word that it is.
    """
    found = {name: load_tokenizer(folder / FOLDERS[name][1]) for name in encoders}
    if "clip_g" in found and (folder / FOLDERS["clip_l"][1]).is_dir():
        like = found.get("clip_l") or load_tokenizer(folder / FOLDERS["clip_l"][1])
        if like.get_vocab() == found["clip_g"].get_vocab():
            found["clip_g"] = like
    return found


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


def _hash(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _encoder_size(size: TextSize, t5_tokens: int) -> EncoderSize:
    if isinstance(size, T5TextSize):
        return EncoderSize(length=t5_tokens, width=size.width)
    return EncoderSize(length=size.length, width=size.width, pooled_width=size.pooled_dim)
