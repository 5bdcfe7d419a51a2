"""Our attention on a CPU against the library's fused kernel, forward and backward; JSON rows.

python benchmarks/attention.py [--repeats 20]
"""

import argparse
from collections.abc import Callable

import torch
from measure import interleaved_ms, print_row
from torch.nn import functional as F

from rectiflow.models.layers.attention import attention

HEAD_DIM = 64

#: (batch, heads, tokens): the demo's step, and depth 8 at 256+154 tokens.
SHAPES = ((64, 4, 48), (4, 8, 410))

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def forward_and_backward(kernel: Kernel, shape: tuple[int, int, int]) -> Callable[[], None]:
    """A call that attends and sends a gradient back."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(*shape, HEAD_DIM, generator=generator).bfloat16().requires_grad_()
        for _ in range(3)
    )
    gradient = torch.ones_like(v)

    def call() -> None:
        kernel(q, k, v).backward(gradient)

    return call


def main() -> None:
    """Measure every shape and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    for shape in SHAPES:
        kernels: dict[str, Kernel] = {
            "rectiflow": attention,
            "library": F.scaled_dot_product_attention,
        }
        calls = {name: forward_and_backward(kernel, shape) for name, kernel in kernels.items()}
        times = interleaved_ms(calls, warm_up=3, repeats=repeats)
        print_row(
            "attention",
            dtype="bfloat16",
            shape=[*shape, HEAD_DIM],
            repeats=repeats,
            forward_and_backward_ms=times,
            speedup=round(times["library"]["median"] / times["rectiflow"]["median"], 3),
        )


if __name__ == "__main__":
    main()
