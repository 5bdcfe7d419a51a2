"""A backbone whose modulation lies in a file, for what a drawing needs of it once.

A third of an MM-DiT's weights make the modulation, which `models.tabulation` computes for up to 64
of a drawing's times at once, usually all, before its first step. Between drawings, and while one
denoises, these weights take no memory then: neither a GPU's, nor what the system cannot take back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rectiflow.base.cache import cache_folder
from rectiflow.base.errors import UserError
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.linear import StackedLinear, multiply
from rectiflow.models.layers.modulation import Modulation
from rectiflow.models.substitution import with_modules


class OffloadedLinear(StackedLinear):
    """A linear map whose weights stay where they are, and visit the device of its input.

    They keep their names, so that LoRAs find them.
    """

    def __init__(self, linear: StackedLinear, weight: Tensor, bias: Tensor) -> None:
        with torch.device("meta"):
            super().__init__(
                linear.in_features,
                linear.out_features // linear.num_parts,
                num_parts=linear.num_parts,
            )
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> OffloadedLinear:
        """Nothing: `to` moves the rest of the backbone, or turns it into another type."""
        return self

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return multiply(input, self.weight.to(input.device), self.bias.to(input.device))


def offload_modulation(backbone: Backbone) -> Backbone:
    """The backbone with the weights of its modulation mapped from a file, beside the given one.

    The file is a temporary one, and gone when nothing uses it any more. It computes the same bits,
    as it does where both are tabulated. All other weights are shared.

    Raises:
        UserError: the file cannot be written.
    """
    linears = {
        linear: name
        for name, module in backbone.named_modules()
        if isinstance(module, Modulation)
        for linear in module
        if isinstance(linear, StackedLinear)
    }
    mapped = _map_to_file(
        {
            f"{name}.{leaf}": tensor.detach()
            for linear, name in linears.items()
            for leaf, tensor in (("weight", linear.weight), ("bias", linear.bias))
        }
    )
    offloaded = with_modules(
        backbone,
        {
            linear: OffloadedLinear(linear, mapped[f"{name}.weight"], mapped[f"{name}.bias"])
            for linear, name in linears.items()
        },
    )
    assert isinstance(offloaded, Backbone)
    return offloaded


def is_offloaded(backbone: nn.Module) -> bool:
    """Whether some of its weights lie in a file."""
    return any(isinstance(module, OffloadedLinear) for module in backbone.modules())


def _map_to_file(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Not the system's folder for temporary files, which may lie in memory.
    place = cache_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="modulation-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            file = Path(folder) / "modulation.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
            # Mapped, they outlive the file's name.
            return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the modulation's weights to {place}: {error}; free some space, name "
            "another place by the environment variable RECTIFLOW_CACHE, or leave "
            "offload_modulation out"
        ) from error
