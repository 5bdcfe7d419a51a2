import hashlib

import torch
from torch import nn

from rectiflow.models.fingerprint import update_with_weights


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    update_with_weights(digest, module)
    return digest.hexdigest()


def test_tells_values_types_shapes_and_names_apart() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    same = nn.Linear(4, 3)
    same.load_state_dict(layer.state_dict())
    assert _hash(same) == _hash(layer)
    with torch.no_grad():
        same.weight[0, 0] += 1e-6
    reshaped = nn.Linear(3, 4)
    reshaped.weight = nn.Parameter(layer.weight.detach().reshape(4, 3))
    hashes = {_hash(module) for module in (layer, same, reshaped, nn.Sequential(layer))}
    assert len(hashes | {_hash(layer.half())}) == 5


def test_does_not_depend_on_the_memory_layout() -> None:
    layer = nn.Linear(4, 3)
    before = _hash(layer)
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    assert not layer.weight.is_contiguous()
    assert _hash(layer) == before
