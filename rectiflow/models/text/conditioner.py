"""The three frozen text encoders with their tokenizers: prompts → `EncodedText`.

First stop on the walk of a prompt, and what `data.encode` runs over captions. Holds transformers'
own CLIP and T5 classes at any size: the embedded ones and SD3's load from the same folder layout.
Imports no transformers, which takes seconds: whoever makes the encoders does.
Source: arXiv 2403.03206, section 4; CLIP 2103.00020, T5 1910.10683.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from rectiflow.base.config import save_config
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.models.fingerprint import update_with_weights
from rectiflow.models.text.encoded import ENCODERS, EncodedText, check_widths

CONFIG_FILE = "conditioner.json"
#: CLIP-G was trained with id 0 behind the end of a prompt, whatever its tokenizer would put there.
CLIP_G_PADDING = 0
#: Tokenizers keep how they cut and pad as state of their own, so threads take turns.
_tokenizing = threading.Lock()
#: Where a folder keeps an encoder and its tokenizer, as in the released SD3 folders.
FOLDERS = {
    "clip_l": ("text_encoder", "tokenizer"),
    "clip_g": ("text_encoder_2", "tokenizer_2"),
    "t5": ("text_encoder_3", "tokenizer_3"),
}


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """Tokens a prompt is cut or padded to, width of a token, width of the pooled vector."""

    length: int
    width: int
    pooled_width: int = 0


@dataclass(frozen=True, kw_only=True)
class TextConditionerConfig:
    """Sizes of what comes out; an encoder that is left out keeps its size, filled with zeros.

    Raises:
        ConfigError: the CLIP towers have different lengths, or together are wider than T5, or
            `block_size` is not positive.
    """

    clip_l: EncoderSize
    clip_g: EncoderSize
    t5: EncoderSize
    block_size: int = 1
    """Prompts that run at once, filled up with empty ones: a fixed shape, so that a prompt's
    states do not depend on how many others were asked for. Larger is faster for many prompts."""

    def __post_init__(self) -> None:
        check_widths(*((size.length, size.width) for size in (self.clip_l, self.clip_g, self.t5)))
        if self.block_size < 1:
            raise ConfigError(f"block_size={self.block_size} must be at least 1")

    @property
    def context_dim(self) -> int:
        return self.t5.width

    @property
    def context_length(self) -> int:
        return self.clip_l.length + self.t5.length

    @property
    def pooled_dim(self) -> int:
        return self.clip_l.pooled_width + self.clip_g.pooled_width

    def size(self, encoder: str) -> EncoderSize:
        return {"clip_l": self.clip_l, "clip_g": self.clip_g, "t5": self.t5}[encoder]


class TextConditioner(nn.Module):
    """Frozen encoders by name ("clip_l", "clip_g", "t5"); any of them may be left out.

    They are transformers' `CLIPTextModelWithProjection` and `T5EncoderModel`, the tokenizers its
    fast ones.

    Raises:
        ConfigError: an encoder's width is not the one that `config` states.
        ValueError: an encoder without tokenizer, or the reverse, or an unknown name.
    """

    def __init__(
        self,
        config: TextConditionerConfig,
        encoders: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if set(encoders) != set(tokenizers) or not set(encoders) <= set(ENCODERS):
            raise ValueError(
                f"encoders {sorted(encoders)} and tokenizers {sorted(tokenizers)} must have the "
                f"same names, out of {ENCODERS}"
            )
        for name, encoder in encoders.items():
            _check_size(name, encoder, config.size(name))
        self.config = config
        self.encoders = nn.ModuleDict(dict(encoders))
        self.tokenizers = dict(tokenizers)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Encode prompts; row i depends on `prompts[i]` alone, bit for bit on CPU.

        Text beyond an encoder's length is cut (`truncations` tells what). An encoder that was
        left out gives zeros.

        Raises:
            TypeError: a single string, or something that is not a string.
            ValueError: no prompt at all.
            UserError: a prompt is not valid Unicode text.
        """
        check_prompts(prompts)
        unique = list(dict.fromkeys(prompts))
        row = {prompt: i for i, prompt in enumerate(unique)}
        block_size = self.config.block_size
        filled = unique + [""] * (-len(unique) % block_size)
        blocks = [
            self._encode_block(filled[start : start + block_size])
            for start in range(0, len(filled), block_size)
        ]
        return EncodedText.concat(blocks)[torch.tensor([row[prompt] for prompt in prompts])]

    def null(self) -> EncodedText:
        """The empty prompt, one row: what guidance contrasts with (see `encoded` on dropping)."""
        return self.encode([""])

    def truncations(self, prompt: str) -> list[tuple[str, str]]:
        """For each encoder that cuts the prompt: its name and the part of the text it loses.

        Raises:
            TypeError, UserError: as `encode`.
        """
        return find_truncations(prompt, bare_tokenizers(self.tokenizers), self.config)

    def fingerprints(self) -> dict[str, str]:
        """Per encoder a hash of its weights, tokenizer and length: equal hashes, equal states."""
        return {
            name: _fingerprint(
                self.encoders[name], self.tokenizers[name], self.config.size(name).length
            )
            for name in self.tokenizers
        }

    def save(self, folder: Path | str) -> None:
        """Write encoders, tokenizers and config; `loading.load_text_folder` reads them back."""
        from rectiflow.models.pretrained import quiet_transformers

        folder = Path(folder)
        for name, tokenizer in self.tokenizers.items():
            encoder_folder, tokenizer_folder = FOLDERS[name]
            _forget_batch(tokenizer.backend_tokenizer)
            with quiet_transformers():
                self._encoder(name).save_pretrained(folder / encoder_folder)
                tokenizer.save_pretrained(folder / tokenizer_folder)
        save_config(folder / CONFIG_FILE, self.config)

    def _encoder(self, name: str) -> Any:
        return self.encoders[name]

    def _encode_block(self, prompts: list[str]) -> EncodedText:
        columns: dict[str, Tensor] = {}
        for name in ENCODERS:
            if name not in self.tokenizers:
                columns |= _zeros(name, self.config.size(name), len(prompts))
                continue
            encoder = self._encoder(name)
            ids = self.token_ids(name, prompts).to(encoder.device)
            # No attention mask, as in SD3: the padding is part of what was learned.
            if name == "t5":
                columns["t5.context"] = encoder(ids).last_hidden_state
            else:
                output = encoder(ids, output_hidden_states=True)
                columns[f"{name}.context"] = output.hidden_states[-2]
                columns[f"{name}.pooled"] = output.text_embeds
        text = EncodedText.from_columns(columns)
        if self.tokenizers:
            # Zeros for what was left out were made on the CPU in float32; follow the others.
            like = columns[f"{next(iter(self.tokenizers))}.context"]
            text = text.to(device=like.device, dtype=like.dtype)
        return text

    def token_ids(self, encoder: str, prompts: Sequence[str]) -> Int[Tensor, "b l"]:
        """What an encoder reads: ids cut and padded to its length."""
        tokenizer, length = self.tokenizers[encoder], self.config.size(encoder).length
        padding = CLIP_G_PADDING if encoder == "clip_g" else tokenizer.pad_token_id
        with _tokenizing:
            ids = tokenizer(list(prompts), max_length=length, truncation=True)["input_ids"]
        return torch.tensor([row + [padding] * (length - len(row)) for row in ids])


def bare_tokenizers(tokenizers: Mapping[str, Any]) -> dict[str, Tokenizer]:
    """What transformers' fast tokenizers are made around."""
    return {name: tokenizer.backend_tokenizer for name, tokenizer in tokenizers.items()}


def find_truncations(
    prompt: str, tokenizers: Mapping[str, Tokenizer], config: TextConditionerConfig
) -> list[tuple[str, str]]:
    """As `TextConditioner.truncations`, from tokenizers alone."""
    check_prompts([prompt])
    lost: list[tuple[str, str]] = []
    for name, tokenizer in tokenizers.items():
        with _tokenizing:
            _forget_batch(tokenizer)
            offsets = tokenizer.encode(prompt, add_special_tokens=False).offsets
        num_kept = config.size(name).length - tokenizer.num_special_tokens_to_add(is_pair=False)
        if len(offsets) > num_kept:
            lost.append((name, prompt[offsets[num_kept][0] :].lstrip()))
    return lost


def _zeros(name: str, size: EncoderSize, num: int) -> dict[str, Tensor]:
    columns = {f"{name}.context": torch.zeros(num, size.length, size.width)}
    if name != "t5":
        columns[f"{name}.pooled"] = torch.zeros(num, size.pooled_width)
    return columns


def check_prompts(prompts: Sequence[Any]) -> None:
    """Pass if they can be encoded.

    Raises:
        TypeError, ValueError, UserError: as `TextConditioner.encode`.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts are a list of strings, got {prompts!r:.60}")
    if not prompts:
        raise ValueError("there is no prompt to encode; pass at least one, which may be empty")
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the prompt {prompt!a:.60} is not valid Unicode text ({error.reason} at character "
                f"{error.start}); type it again, or save its file as UTF-8"
            ) from error


def size_of(config: Any, length: int) -> EncoderSize:
    """An encoder's size from its transformers config."""
    if config.model_type == "t5":
        return EncoderSize(length=length, width=config.d_model)
    return EncoderSize(length=length, width=config.hidden_size, pooled_width=config.projection_dim)


def _check_size(name: str, encoder: Any, size: EncoderSize) -> None:
    actual = size_of(encoder.config, size.length)
    if actual != size:
        raise ConfigError(
            f"{name} is {actual.width} wide (pooled {actual.pooled_width}), the conditioner's "
            f"config says {size.width} (pooled {size.pooled_width}); use the files that belong "
            "together"
        )


def _fingerprint(encoder: nn.Module, tokenizer: Any, length: int) -> str:
    digest = hashlib.sha256(f"length={length};pad={tokenizer.pad_token_id}".encode())
    digest.update(describe_tokenizer(tokenizer).encode())
    update_with_weights(digest, encoder)
    return digest.hexdigest()


def describe_tokenizer(tokenizer: Any) -> str:
    """JSON of all that decides a tokenizer's ids."""
    _forget_batch(tokenizer.backend_tokenizer)
    return tokenizer.backend_tokenizer.to_str()


def _forget_batch(tokenizer: Tokenizer) -> None:
    """Tokenizers remember how the last batch was cut and padded; they are the same without."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
