"""One joint block of SD3-medium's size against diffusers', guided pictures; JSON rows.

Conditional and unconditional picture go through as one batch of two, with 154 text tokens. Both
blocks hold their weights in the same type. Ours multiplies as the backbone would on this
processor: in float32 where it has no bfloat16, diffusers' in the weights' own type.

    python benchmarks/joint_block.py [--repeats 5]
"""

import argparse

import torch
from diffusers.models.attention import JointTransformerBlock
from measure import interleaved_ms, print_row

from rectiflow.models.mmdit import JointBlock, MMDiTConfig
from rectiflow.models.precision import compute_dtype

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
        for side_px in SIDES_PX:
            x = torch.randn(2, (side_px // LATENT_FACTOR) ** 2, dim)
            context, vector = torch.randn(2, NUM_TEXT, dim), torch.randn(2, dim)
            mine = [value.to(computed) for value in (context, x, vector)]
            other = [value.to(dtype) for value in (context, x, vector)]
            times = interleaved_ms(
                {
                    "rectiflow": lambda: ours(mine[:2], mine[2]),  # noqa: B023
                    "diffusers": lambda: theirs(  # noqa: B023
                        hidden_states=other[1],  # noqa: B023
                        encoder_hidden_states=other[0],  # noqa: B023
                        temb=other[2],  # noqa: B023
                    ),
                },
                warm_up=1,
                repeats=repeats,
            )
            print_row(
                "joint_block",
                held_in=str(dtype),
                multiplied_in=str(computed),
                side_px=side_px,
                repeats=repeats,
                forward_ms=times,
                speedup=round(times["diffusers"]["median"] / times["rectiflow"]["median"], 3),
            )


if __name__ == "__main__":
    main()
