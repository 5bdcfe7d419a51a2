"""Prompts' states on the disk: whatever can be read there needs no encoder."""

from pathlib import Path

import pytest
import torch

from rectiflow.models.text.cache import CachedConditioner
from rectiflow.models.text.conditioner import TextConditioner, bare_tokenizers


def test_states_that_cannot_be_touched_are_read(
    random_conditioner: TextConditioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cache of somebody else, or on a disk that is read-only."""

    def cached() -> CachedConditioner:
        return CachedConditioner(
            config=random_conditioner.config,
            tokenizers=bare_tokenizers(random_conditioner.tokenizers),
            identity="plain",
            load=lambda: random_conditioner,
        )

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    expected = cached().encode(["a red circle"])
    monkeypatch.setattr(Path, "touch", refuse)
    again = cached()
    found = again.encode(["a red circle"])
    assert not again.is_loaded
    assert all(torch.equal(value, found.columns()[n]) for n, value in expected.columns().items())
