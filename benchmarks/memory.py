"""Peak memory while SD3-medium's size is loaded and draws, against that of its weights; a JSON row.

Random weights in bfloat16 in one file, CLIP text encoders beside it, T5 left out. Another process
loads and draws, so that its peak is of nothing else; it includes Python and the libraries.

    python benchmarks/memory.py [--side 256] [--steps 2]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import print_row
from torch import nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

from rectiflow import Pipeline
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.mmdit import MMDiT
from rectiflow.models.published import RELEASED, part_of, save_single_file
from rectiflow.models.shipped import shipped_path

NAME = "SD3-medium"
# Width, heads, layers, feed-forward width: CLIP-L/14 and CLIP-bigG/14.
CLIPS = {"text_encoder": (768, 12, 12, 3072), "text_encoder_2": (1280, 20, 32, 5120)}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Small weights, the same block of random numbers over and over: drawing 2·10⁹ takes long."""
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    for parameter in module.parameters():
        repeats = -(-parameter.numel() // len(block))
        parameter.copy_(block.repeat(repeats)[: parameter.numel()].view_as(parameter))


def write(folder: Path) -> None:
    """The model file and the folder of text encoders."""
    torch.set_default_dtype(torch.bfloat16)
    model, autoencoder = MMDiT(RELEASED[NAME]), Autoencoder(AutoencoderConfig())
    for module in (model, autoencoder):
        fill(module)
    parts = {"mmdit": part_of(model), "autoencoder": part_of(autoencoder)}
    save_single_file(folder / "sd3_medium.safetensors", parts)
    for name, (width, heads, layers, inner) in CLIPS.items():
        source = shipped_path("text") / TOKENIZERS[name]
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(folder / "text" / TOKENIZERS[name])
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        encoder = CLIPTextModelWithProjection(config)
        fill(encoder)
        encoder.save_pretrained(folder / "text" / name)


def peak_bytes() -> int:
    """The largest resident set of this process so far; mapped files count once they are read."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def draw(folder: Path, side_px: int, num_steps: int) -> None:
    """Load, draw, and print the peaks after both."""
    imported = peak_bytes()
    pipeline = Pipeline.from_pretrained(
        folder / "sd3_medium.safetensors",
        text_encoders=folder / "text",
        tokenizers=folder / "text",
        encoders=("clip_l", "clip_g"),
        dtype=torch.bfloat16,
    )
    loaded = peak_bytes()
    pipeline("a red circle", height=side_px, width=side_px, num_inference_steps=num_steps, seed=0)
    print(json.dumps({"imported": imported, "loaded": loaded, "drawn": peak_bytes()}))


def main() -> None:
    """Write the files, draw in another process, print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw is not None:
        draw(arguments.draw, arguments.side, arguments.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--side", str(arguments.side)]
        command += ["--steps", str(arguments.steps), "--draw", name]
        # Also in a process of its own, which gives its memory back.
        subprocess.run(
            [sys.executable, "-c", f"import memory; memory.write(memory.Path({name!r}))"],
            check=True,
            cwd=Path(__file__).parent,
        )
        files = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in folder.rglob("*.safetensors")
        }
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    weights, peaks = sum(files.values()), json.loads(told.splitlines()[-1])
    print_row(
        "memory",
        model=NAME,
        dtype="torch.bfloat16",
        side_px=arguments.side,
        weight_bytes=files,
        peak_bytes=peaks,
        peak_over_weights={name: round(peak / weights, 3) for name, peak in peaks.items()},
    )


if __name__ == "__main__":
    main()
