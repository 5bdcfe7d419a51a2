"""SD3's autoencoder against diffusers' with the same weights, one picture both ways; JSON rows.

Random weights of the released size, in float32. Each row has the largest difference between the
two results, in parts of the largest value.

    python benchmarks/autoencoder.py [--repeats 5] [--sides 256 512]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from measure import interleaved_ms, print_row

from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.published import load_autoencoder


def autoencoder_pair() -> tuple[Autoencoder, AutoencoderKL]:
    """Ours as loaded from what diffusers' saved, and diffusers'."""
    torch.manual_seed(0)
    config = AutoencoderConfig()
    num_levels = len(config.channel_multipliers)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=tuple(config.base_channels * m for m in config.channel_multipliers),
        layers_per_block=config.num_blocks,
        latent_channels=config.latent_channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=config.latent_shift,
        scaling_factor=config.latent_scale,
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "vae")
        ours = load_autoencoder(folder, dtype=torch.float32)
    assert ours.config == config
    return ours, theirs.eval().requires_grad_(False)


@torch.inference_mode()
def main() -> None:
    """Measure both ways at each size and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    arguments = parser.parse_args()
    ours, theirs = autoencoder_pair()
    shift, scale = ours.config.latent_shift, ours.config.latent_scale
    for side_px in arguments.sides:
        images = 2 * torch.rand(1, 3, side_px, side_px) - 1
        latents = ours.encode(images).mean
        ways = {
            "encode": {
                "rectiflow": lambda: ours.encode(images).mean,  # noqa: B023
                "diffusers": lambda: (theirs.encode(images).latent_dist.mean - shift) * scale,  # noqa: B023
            },
            "decode": {
                "rectiflow": lambda: ours.decode(latents),  # noqa: B023
                "diffusers": lambda: theirs.decode(latents / scale + shift).sample,  # noqa: B023
            },
        }
        for way, calls in ways.items():
            mine, other = (calls[name]() for name in ("rectiflow", "diffusers"))
            times = interleaved_ms(calls, warm_up=0, repeats=arguments.repeats)
            print_row(
                "autoencoder",
                way=way,
                dtype="torch.float32",
                side_px=side_px,
                repeats=arguments.repeats,
                milliseconds=times,
                speedup=round(times["diffusers"]["median"] / times["rectiflow"]["median"], 3),
                largest_difference=float((mine - other).abs().max() / other.abs().max()),
            )


if __name__ == "__main__":
    main()
