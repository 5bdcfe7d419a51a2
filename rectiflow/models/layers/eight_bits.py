"""Linear maps multiplied in 8 bits: integers on CPUs, e4m3 floats on GPUs that have them.

Each row of the input and each output's weights have a scale of their own, found from the largest
value, so that a row's result depends on no other row.
Source: arXiv 2208.07339, section 3 (vector-wise scales); arXiv 2209.05433 (the e4m3 format).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_INT8_MAX = 127
# Inputs keep 7 of their 8 bits: without an instruction for it, the sum of two products of 8 bits
# overflows the 16 bits that it is first kept in. So the numbers are the same on every processor.
_INPUT_MAX = 63
_INPUT_ZERO = 64
_E4M3 = torch.float8_e4m3fn


class EightBitLinear(nn.Module, ABC):
    """A frozen linear map made from a trained one."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        bias: Any = linear.bias  # which its stubs say is always there
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.hold(linear.weight.detach().float())

    @abstractmethod
    def hold(self, weight: Float[Tensor, "o i"]) -> None:
        """Keep the weights as buffers, in 8 bits and with their scales."""

    @abstractmethod
    def multiply(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """x·weightᵀ."""

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        product = self.multiply(input.flatten(0, -2)).to(input.dtype)
        if self.bias is not None:
            product += self.bias.to(input.dtype)
        return product.unflatten(0, input.shape[:-1])


class Int8Linear(EightBitLinear):
    """Weights in −127…127, inputs in −63…63; the sums of their products are exact."""

    def hold(self, weight: Float[Tensor, "o i"]) -> None:
        scale = _largest(weight, dim=1).squeeze(1) / _INT8_MAX
        held = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", torch.ops.onednn.qlinear_prepack(held, None))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int64))

    def multiply(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        x = x.float()
        scale = _largest(x, dim=1) / _INPUT_MAX
        held = (x / scale).round_().add_(_INPUT_ZERO).to(torch.uint8)
        product = torch.ops.rectiflow.int8_product(held, self.weight, self.scale, self.zero)
        return product.mul_(scale)


def _int8_product(held: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(held − 64)·weightᵀ·scale in float32, of bytes [n, i] and packed weights [o, i]."""
    return torch.ops.onednn.qlinear_pointwise(
        held, 1.0, _INPUT_ZERO, weight, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _like_int8_product(held: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return held.new_empty((len(held), len(scale)), dtype=torch.float32)


# An operator of ours, because compiled graphs take oneDNN's only with weights that are constants.
# By hand: `torch.library.custom_op` adds a quarter to a small product, and imports the compiler.
_OPERATORS = torch.library.Library("rectiflow", "DEF")
_OPERATORS.define("int8_product(Tensor held, Tensor weight, Tensor scale, Tensor zero) -> Tensor")
_OPERATORS.impl("int8_product", _int8_product, "CompositeExplicitAutograd")
torch.library.register_fake("rectiflow::int8_product", _like_int8_product, lib=_OPERATORS)


class Float8Linear(EightBitLinear):
    """Weights and inputs in e4m3, up to ±448; their products are summed in float32."""

    def hold(self, weight: Float[Tensor, "o i"]) -> None:
        held, scale = _as_e4m3(weight)
        self.register_buffer("weight", held)
        self.register_buffer("scale", scale)

    def multiply(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        held, scale = _as_e4m3(x.float())
        return torch._scaled_mm(  # pyright: ignore[reportPrivateUsage]
            held, self.weight.T, scale_a=scale, scale_b=self.scale.T, out_dtype=torch.bfloat16
        )


def _largest(x: Float[Tensor, "n i"], *, dim: int) -> Float[Tensor, "n 1"]:
    """The largest absolute value of each row, never zero."""
    return x.abs().amax(dim=dim, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _as_e4m3(x: Float[Tensor, "n i"]) -> tuple[Float[Tensor, "n i"], Float[Tensor, "n 1"]]:
    scale = _largest(x, dim=1) / torch.finfo(_E4M3).max
    return (x / scale).to(_E4M3), scale
