"""A backbone whose blocks multiply in 8 bits, and how far that moves its output.

For drawing only. Attention, norms, modulation and whatever stands around the blocks stay as they
are: they are a small part of the work, and the numbers that they make reach every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import nn

from rectiflow.base import philox
from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.eight_bits import Float8Linear, Int8Linear
from rectiflow.models.layers.modulation import Modulation
from rectiflow.models.substitution import with_modules

EightBits = Literal["int8", "fp8"]
_LAYERS: dict[str, Callable[[nn.Linear], nn.Module]] = {"int8": Int8Linear, "fp8": Float8Linear}
#: Of what tensor cores take of e4m3 at once.
FP8_MULTIPLE = 16
_PROBE_SIDE, _PROBE_TOKENS, _PROBE_TIMES = 8, 16, (0.2, 0.5, 0.8)


@torch.inference_mode()
def quantize(backbone: Backbone, kind: EightBits) -> tuple[Backbone, float]:
    """The backbone with all matrices of its blocks in 8 bits, and how far that moves its output.

    That is the root mean square of the change over that of the output, on noise of a few tokens at
    three times. The given one stays as it is, and all but those matrices is shared.

    Raises:
        ConfigError: the device cannot multiply so, or not matrices of such sizes.
    """
    check_device(kind, next(backbone.parameters()).device)
    matrices = [linear for block in backbone.blocks for linear in _matrices(block)]
    if kind == "fp8":
        check_fp8_sizes(matrices)
    quantized = with_modules(backbone, {linear: _LAYERS[kind](linear) for linear in matrices})
    assert isinstance(quantized, Backbone)
    before, after = _probe(backbone), _probe(quantized)
    change = (after - before).square().mean()
    # An output layer as it begins gives zeros, of which any share would be 0/0.
    moved = (change / before.square().mean()).sqrt().item() if change > 0.0 else 0.0
    return quantized, moved


def quantize_block(block: nn.Module, kind: EightBits) -> nn.Module:
    """One block alone, as `quantize` does."""
    return with_modules(block, {linear: _LAYERS[kind](linear) for linear in _matrices(block)})


def _matrices(module: nn.Module) -> Iterator[nn.Linear]:
    for child in module.children():
        if isinstance(child, nn.Linear):
            yield child
        # A modulation is one row a picture, and its weights are read once.
        elif not isinstance(child, Modulation):
            yield from _matrices(child)


def check_fp8_sizes(matrices: Iterable[nn.Linear]) -> None:
    """Pass if GPUs multiply such matrices in fp8: both sizes are multiples of 16.

    Raises:
        ConfigError: one is not.
    """
    for linear in matrices:
        for size in (linear.in_features, linear.out_features):
            if size % FP8_MULTIPLE:
                raise ConfigError(
                    f"fp8 multiplies matrices of multiples of {FP8_MULTIPLE}, and one of this "
                    f"model's has {size}; leave fp8 out, or take int8 on a CPU, which needs none"
                )


def check_device(kind: str, device: torch.device) -> None:
    """Pass if the device multiplies in these 8 bits.

    Raises:
        ConfigError: it does not.
    """
    wanted = "cpu" if kind == "int8" else "cuda"
    if device.type != wanted:
        other = "fp8" if kind == "int8" else "int8"
        raise ConfigError(
            f"{kind} is for device {wanted}, not {device.type}; choose {other} there, or neither"
        )
    if kind == "int8" and not hasattr(torch.ops.onednn, "qlinear_prepack"):
        raise ConfigError("this PyTorch was built without oneDNN, which int8 needs; leave it out")
    if kind == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} does not multiply in fp8, which came with "
            "compute capability 8.9; leave it out"
        )


def _probe(backbone: Backbone) -> torch.Tensor:
    config, num = backbone.config, len(_PROBE_TIMES)
    num_text = _PROBE_TOKENS + (getattr(config, "num_clip_tokens", None) or 0)
    device = next(backbone.parameters()).device
    # Whole patches, and no more of them than there are positions.
    side = config.patch_size * min(config.position_side, max(1, _PROBE_SIDE // config.patch_size))
    shapes = (
        (config.in_channels, side, side),
        (num_text, config.context_dim),
        (config.pooled_dim,),
    )
    keys = torch.arange(num)
    z_t, context, pooled = (
        philox.normal(keys, shape, stream=stream).to(device) for stream, shape in enumerate(shapes)
    )
    t = torch.tensor(_PROBE_TIMES, device=device, dtype=torch.float32)
    return backbone(z_t, t, Conditioning(context=context, pooled=pooled)).float()
