"""SD3-medium's transformer at its own size on a GPU, all steps of a guided picture; JSON rows.

Random weights in bfloat16, 1024², 28 steps, guided, 154 text tokens: the time of the transformer
part alone, once as it is, once with every block compiled, once with that recorded as CUDA graphs,
and the last in fp8 where the GPU has it. Needs PyTorch and this package, nothing else.

    python benchmarks/released_size.py [--repeats 5]
    python benchmarks/released_size.py --device cpu --side 64 --steps 2 --depth 2     # tries it out
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from measure import interleaved_ms, print_row

from rectiflow.flow import ResolutionShift, rectified_flow
from rectiflow.models.compilation import with_compiled_blocks
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.mmdit import MMDiT
from rectiflow.models.published import RELEASED
from rectiflow.models.quantization import quantize
from rectiflow.models.substitution import is_compiled
from rectiflow.models.tabulation import tabulate
from rectiflow.sampling import ClassifierFreeGuidance, Euler, Field, ReleasedGrid, integrate

NUM_TEXT = 154
LATENT_FACTOR = 8


def drawing(
    backbone: Backbone, prompts: Conditioning, null: Conditioning, times: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What carries noise to latents, its modulation tabulated where generation does so."""
    network, (told, told_null) = backbone, (backbone.embed(prompts), backbone.embed(null))
    if not is_compiled(backbone):
        network, (told, told_null) = tabulate(backbone, [told, told_null], times)
    field = Field(
        backbone=network,
        formulation=rectified_flow(),
        guidance=ClassifierFreeGuidance(),
        guidance_scale=5.0,
        conditioning=told,
        null=told_null,
    )
    return partial(_integrate, field, times)


def _integrate(field: Field, times: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    latents = integrate(field, Euler(), noise, times)
    if latents.is_cuda:
        torch.cuda.synchronize()
    return latents


def ways(backbone: Backbone, device: torch.device) -> Iterator[tuple[str, Backbone]]:
    """The backbone in each way that is measured."""
    yield "eager", backbone
    yield "compiled", with_compiled_blocks(backbone)
    if device.type == "cuda":
        yield "CUDA graphs", with_compiled_blocks(backbone, cuda_graphs=True)
        if torch.cuda.get_device_capability(device) >= (8, 9):
            quantized, _ = quantize(backbone, "fp8")
            yield "fp8, CUDA graphs", with_compiled_blocks(quantized, cuda_graphs=True)


@torch.inference_mode()
def main() -> None:
    """Measure every way and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config = replace(RELEASED["SD3-medium"], depth=arguments.depth)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        torch.manual_seed(0)
        backbone = MMDiT(config).to(dtype).eval().requires_grad_(False)
        for parameter in backbone.parameters():
            parameter.normal_(std=0.02)
        side = arguments.side // LATENT_FACTOR
        noise = torch.randn(1, config.latent_channels, side, side)
        context = torch.randn(2, NUM_TEXT, config.context_dim)
        prompts = Conditioning(context=context, pooled=torch.randn(2, config.pooled_dim))
        times = ReleasedGrid().times(
            arguments.steps, shift=ResolutionShift(alpha=3.0), num_tokens=None
        )
        times = times.float().to(device)
    for name, network in ways(backbone, device):
        draw = drawing(network, prompts[:1], prompts[1:], times)
        calls = {name: partial(draw, noise)}
        times_ms = interleaved_ms(calls, warm_up=2, repeats=arguments.repeats)
        print_row(
            "released_size",
            way=name,
            depth=arguments.depth,
            side_px=arguments.side,
            steps=arguments.steps,
            dtype=str(dtype),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            repeats=arguments.repeats,
            transformer_ms=times_ms[name],
        )


if __name__ == "__main__":
    main()
