"""One joint block of SD3-medium's size against diffusers', guided pictures; JSON rows.

Conditional and unconditional picture go through as one batch of two, with 154 text tokens. Both
blocks hold their weights in the same type. Ours multiplies as the backbone would on this
processor: in float32 where it has no bfloat16, diffusers' in the weights' own type. In bfloat16
ours is measured in int8 as well.

    python benchmarks/joint_block.py [--repeats 5]
"""

import argparse
from functools import partial

import torch
from diffusers.models.attention import JointTransformerBlock
from measure import interleaved_ms, print_row
from torch import nn

from rectiflow.models.mmdit import JointBlock, MMDiTConfig
from rectiflow.models.precision import compute_dtype
from rectiflow.models.quantization import quantize_block

CONFIG = MMDiTConfig(depth=24)
NUM_TEXT = 154
SIDES_PX = (256, 512)
LATENT_FACTOR = 16


@torch.inference_mode()
def main() -> None:
    """Measure both sizes in both types and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    dim = CONFIG.hidden_dim
    for dtype in (torch.float32, torch.bfloat16):
        theirs = JointTransformerBlock(dim, dim // CONFIG.head_dim, CONFIG.head_dim)
        ours = JointBlock(CONFIG, is_last=False)
        for parameter in (*theirs.parameters(), *ours.parameters()):
            parameter.normal_(std=0.02)
        theirs, ours = theirs.eval().to(dtype), ours.eval().to(dtype)
        computed = torch.float32 if dtype == torch.float32 else compute_dtype("auto")
        mine: dict[str, nn.Module] = {"rectiflow": ours}
        if dtype == torch.bfloat16:
            mine["rectiflow int8"] = quantize_block(ours, "int8")
        for side_px in SIDES_PX:
            x = torch.randn(2, (side_px // LATENT_FACTOR) ** 2, dim)
            context, vector = torch.randn(2, NUM_TEXT, dim), torch.randn(2, dim)
            inputs = [value.to(computed) for value in (context, x, vector)]
            calls = {name: partial(block, inputs[:2], inputs[2]) for name, block in mine.items()}
            calls["diffusers"] = partial(
                theirs,
                hidden_states=x.to(dtype),
                encoder_hidden_states=context.to(dtype),
                temb=vector.to(dtype),
            )
            times = interleaved_ms(calls, warm_up=1, repeats=repeats)
            print_row(
                "joint_block",
                held_in=str(dtype),
                multiplied_in=str(computed),
                side_px=side_px,
                repeats=repeats,
                forward_ms=times,
                speedup={
                    name: round(times["diffusers"]["median"] / times[name]["median"], 3)
                    for name in mine
                },
            )


if __name__ == "__main__":
    main()
