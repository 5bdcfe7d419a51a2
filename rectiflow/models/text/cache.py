"""Prompts' states kept on the disk, so that a prompt met before needs no text encoder at all.

On the walk of a prompt: T5-XXL takes longer to load than many a picture to draw, and so does
transformers for the embedded encoders. They are loaded when a prompt comes that is not there yet.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from rectiflow.base.cache import cache_folder
from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_write
from rectiflow.models.published.text_configs import TextSize
from rectiflow.models.text.conditioner import (
    TextConditioner,
    TextConditionerConfig,
    check_prompts,
    find_truncations,
)
from rectiflow.models.text.encoded import COLUMNS, EncodedText

_FOLDER = "prompts"
_SUFFIX = ".safetensors"
#: The oldest go when all prompts' states together are larger.
MAX_BYTES = 4 * 2**30


@runtime_checkable
class PromptEncoder(Protocol):
    """What generation needs of the text encoders; `TextConditioner` is one.

    `tokenizers` has the names of the encoders in use.
    """

    @property
    def config(self) -> TextConditionerConfig: ...

    @property
    def tokenizers(self) -> Mapping[str, Any]: ...

    def encode(self, prompts: Sequence[str]) -> EncodedText: ...

    def null(self) -> EncodedText: ...

    def truncations(self, prompt: str) -> list[tuple[str, str]]: ...

    def fingerprints(self) -> dict[str, str]: ...

    def to(self, device: torch.device | str) -> PromptEncoder: ...


class CachedConditioner:
    """A `TextConditioner` that is made by `load` when first needed, behind a cache on the disk.

    `identity` tells apart whatever gives other states: weights, tokenizers, lengths, number type.
    `sizes` are those of the encoders in use, None where only the encoders themselves tell.
    `fingerprints` tell each encoder's states apart, whichever others stand beside it.
    No states are kept of a call with more than `max_kept` new prompts, which small encoders have
    encoded before a disk has written them.
    """

    def __init__(
        self,
        *,
        config: TextConditionerConfig,
        tokenizers: Mapping[str, Tokenizer],
        identity: str,
        load: Callable[[], TextConditioner],
        sizes: Mapping[str, TextSize] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        max_kept: int | None = None,
    ) -> None:
        self.config = config
        self.tokenizers = dict(tokenizers)
        self.sizes = sizes
        self._fingerprints = fingerprints
        self._max_kept = max_kept
        self._identity = identity
        self._load = load
        self._conditioner: TextConditioner | None = None
        self._loading = threading.Lock()
        self._device = torch.device("cpu")

    @property
    def is_loaded(self) -> bool:
        """Whether the encoders are in memory."""
        return self._conditioner is not None

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """As `TextConditioner.encode`, with the same errors."""
        check_prompts(prompts)
        unique = list(dict.fromkeys(prompts))
        found = {prompt: self._read(prompt) for prompt in unique}
        if missing := [prompt for prompt in unique if found[prompt] is None]:
            encoded = self.conditioner().encode(missing).to(device="cpu")
            found |= {prompt: encoded[i : i + 1] for i, prompt in enumerate(missing)}
            if self._max_kept is None or len(missing) <= self._max_kept:
                for i, prompt in enumerate(missing):
                    self._write(prompt, encoded[i : i + 1])
                _forget_oldest(cache_folder() / _FOLDER)
        rows = [row for prompt in prompts if (row := found[prompt]) is not None]
        return EncodedText.concat(rows).to(device=self._device)

    def null(self) -> EncodedText:
        """As `TextConditioner.null`."""
        return self.encode([""])

    def fingerprints(self) -> dict[str, str]:
        """For each encoder in use, what tells its states apart; none is loaded.

        Where they were not given, they follow from the identity, that of all encoders together.
        """
        if self._fingerprints is not None:
            return dict(self._fingerprints)
        return {
            name: hashlib.sha256(f"{self._identity}\0{name}".encode()).hexdigest()
            for name in self.tokenizers
        }

    def truncations(self, prompt: str) -> list[tuple[str, str]]:
        """As `TextConditioner.truncations`; the encoders are not loaded."""
        return find_truncations(prompt, self.tokenizers, self.config)

    def to(self, device: torch.device | str) -> CachedConditioner:
        """Itself, its encoders on another device, now or when they are loaded."""
        self._device = torch.device(device)
        if self._conditioner is not None:
            self._conditioner.to(self._device)
        return self

    def unload(self) -> None:
        """Let go of the encoders; the next prompt that is not there yet loads them again."""
        with self._loading:
            self._conditioner = None

    def conditioner(self) -> TextConditioner:
        """The encoders themselves, loaded if they were not."""
        with self._loading:
            if self._conditioner is None:
                self._conditioner = self._load().to(self._device)
            return self._conditioner

    def changed(
        self, how: str, change: Callable[[TextConditioner], TextConditioner]
    ) -> CachedConditioner:
        """Another one, of the encoders that `change` makes of these when they are needed.

        `how` tells apart whatever changes differently: its states are kept apart from these and
        from any other's.
        """
        changed = CachedConditioner(
            config=self.config,
            tokenizers=self.tokenizers,
            sizes=self.sizes,
            identity=hashlib.sha256(f"{self._identity}\0{how}".encode()).hexdigest(),
            load=lambda: change(self.conditioner()),
            max_kept=self._max_kept,
        )
        return changed.to(self._device)

    def _path(self, prompt: str) -> Path:
        # Devices, numbers of threads and versions of torch round differently: a picture must not
        # depend on which of them met its prompt first.
        where = [torch.__version__, self._device.type, str(torch.get_num_threads())]
        key = "\0".join([self._identity, *where, torch.backends.cpu.get_cpu_capability(), prompt])
        digest = hashlib.sha256(key.encode()).hexdigest()
        return cache_folder() / _FOLDER / f"{digest}{_SUFFIX}"

    def _read(self, prompt: str) -> EncodedText | None:
        path = self._path(prompt)
        try:
            columns = load_file(path)
        except (OSError, SafetensorError):
            return None
        # Read it can be where nothing can be written; only `_forget_oldest` asks when.
        with suppress(OSError):
            path.touch()
        return EncodedText.from_columns(columns) if set(columns) == set(COLUMNS) else None

    def _write(self, prompt: str, row: EncodedText) -> None:
        path = self._path(prompt)
        columns = {name: value.contiguous() for name, value in row.columns().items()}
        with suppress(UserError), atomic_write(path) as file:
            file.write(save(columns))


def _forget_oldest(folder: Path) -> None:
    """Remove files that were not used for longest until `MAX_BYTES` are left."""
    with suppress(OSError):
        files = [(path.stat(), path) for path in folder.glob(f"*{_SUFFIX}")]
        total = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda pair: pair[0].st_mtime):
            if total <= MAX_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size
