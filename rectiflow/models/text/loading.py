"""Reads the text encoders from a folder laid out like the released SD3's, without any network.

`FOLDER/text_encoder`, `text_encoder_2`, `text_encoder_3` and `tokenizer`, `tokenizer_2`,
`tokenizer_3`, each as transformers saves it. `FOLDER/conditioner.json` states lengths; without it
they are SD3's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
)

from rectiflow.base.config import load_config
from rectiflow.base.errors import CheckpointError
from rectiflow.models.pretrained import load_pretrained, quiet_transformers, require_file
from rectiflow.models.text.conditioner import (
    CONFIG_FILE,
    FOLDERS,
    TextConditioner,
    TextConditionerConfig,
    size_of,
)
from rectiflow.models.text.encoded import ENCODERS, choose_encoders

#: Tokens in the released SD3: CLIP was trained with 77, T5 is cut at 256.
SD3_LENGTHS = {"clip_l": 77, "clip_g": 77, "t5": 256}

_CLASSES: dict[str, tuple[Any, Any]] = {
    "clip_l": (CLIPTextConfig, CLIPTextModelWithProjection),
    "clip_g": (CLIPTextConfig, CLIPTextModelWithProjection),
    "t5": (T5Config, T5EncoderModel),
}


def load_text_folder(
    folder: Path | str,
    *,
    encoders: Sequence[str] = ENCODERS,
    lengths: Mapping[str, int] | None = None,
    block_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> TextConditioner:
    """Load the text encoders of a folder.

    Args:
        folder: as `TextConditioner.save` or diffusers' SD3 pipelines write it.
        encoders: which to load; the others give zeros and only their config is read.
        lengths: tokens per encoder, for a folder without `conditioner.json`; SD3's when None.
        block_size: prompts that run at once, for a folder without `conditioner.json`.
        dtype: what the encoders compute in, whatever the file stores.

    Raises:
        UserError: a folder or file is missing, or a name is not an encoder's.
        CheckpointError: weights, a config or a tokenizer are damaged, or weights lack tensors of
            the model.
        ConfigError: `conditioner.json` does not fit the encoders.
    """
    folder, chosen = Path(folder), choose_encoders(encoders)
    if (folder / CONFIG_FILE).exists():
        config = load_config(folder / CONFIG_FILE, TextConditionerConfig)
    else:
        config = _config_from_encoders(folder, lengths or SD3_LENGTHS, block_size)
    return TextConditioner(
        config,
        {
            name: load_pretrained(_CLASSES[name][1], folder / FOLDERS[name][0], dtype)
            for name in chosen
        },
        {name: load_tokenizer(folder / FOLDERS[name][1]) for name in chosen},
    )


def _config_from_encoders(
    folder: Path, lengths: Mapping[str, int], block_size: int
) -> TextConditionerConfig:
    sizes: dict[str, Any] = {}
    for name in ENCODERS:
        path = folder / FOLDERS[name][0]
        require_file(path / "config.json")
        with _told_in_a_line(f"the config in {path}"):
            config = _CLASSES[name][0].from_pretrained(path, local_files_only=True)
            sizes[name] = size_of(config, lengths[name])
    return TextConditionerConfig(block_size=block_size, **sizes)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder that transformers saved; code that lies there is never run.

    Raises:
        UserError: there is none.
        CheckpointError: its files are damaged, or it needs code of its own.
    """
    require_file(folder / "tokenizer_config.json")
    with _told_in_a_line(f"the tokenizer in {folder}"), quiet_transformers():
        # False, since None would ask the user whether to run a folder's code.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _told_in_a_line(what: str) -> Generator[None]:
    """Around what transformers loads: damaged files are answered by what its parsing runs into."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"cannot load {what} ({reason:.200}); fetch it again") from error
