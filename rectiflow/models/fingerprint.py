"""A network's weights as bytes for a hash: equal hashes, equal weights."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes | memoryview, /) -> None: ...


def update_with_weights(digest: Digest, module: nn.Module) -> None:
    """Feed names, types, shapes and bytes of every weight and buffer, in the order of names."""
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"|{name}:{tensor.dtype}:{tuple(tensor.shape)}|".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
