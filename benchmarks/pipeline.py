"""A whole picture against `StableDiffusion3Pipeline` with the same weights and numbers; JSON rows.

A transformer of depth 8, SD3's autoencoder, text encoders of SD3's widths and lengths but of one
layer, all random; 256 px, 20 steps, guided. Once with T5 and once without, where both pipelines
take zeros for its tokens. With bf16 both hold their weights in bfloat16; a row says what ours
multiplies in, which on a processor without bfloat16 is float32.

    python benchmarks/pipeline.py [--repeats 3] [--steps 20] [--precision fp32|bf16]
                                  [--depth 8] [--side-px 256]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from measure import interleaved_ms, print_row
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from rectiflow import Pipeline
from rectiflow.models.shipped import shipped_path

PROMPT = "a red circle"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
T5_TOKENS = 256


def clip(width: int, pooled_width: int, tokenizer: Any) -> CLIPTextModelWithProjection:
    """A CLIP text tower of one layer."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=pooled_width,
            num_hidden_layers=1,
            num_attention_heads=width // 64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def random_pipeline(depth: int) -> StableDiffusion3Pipeline:
    """SD3's parts at the benchmark's size, with no weight zero."""
    torch.manual_seed(0)
    text = shipped_path("text")
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    first, second, third = (AutoTokenizer.from_pretrained(text / name) for name in names)
    first.model_max_length = second.model_max_length = 77
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            num_layers=depth,
            num_attention_heads=depth,
            caption_projection_dim=64 * depth,
            sample_size=128,
            pos_embed_max_size=192,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            shift_factor=0.0609,
            scaling_factor=1.5305,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval(),
        text_encoder=clip(768, 768, first),
        text_encoder_2=clip(1280, 1280, second),
        text_encoder_3=T5EncoderModel(
            T5Config(
                vocab_size=len(third),
                d_model=4096,
                d_ff=64,
                d_kv=8,
                num_heads=8,
                num_layers=1,
                feed_forward_proj="gated-gelu",
            )
        ).eval(),
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=third,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.inference_mode()
def main() -> None:
    """Measure with and without T5 and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--side-px", type=int, default=256)
    arguments = parser.parse_args()
    theirs = random_pipeline(arguments.depth).to(DTYPES[arguments.precision])
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        for encoders in (("clip_l", "clip_g", "t5"), ("clip_l", "clip_g")):
            if "t5" not in encoders:
                theirs.text_encoder_3 = None
            measure(theirs, Path(folder), encoders, arguments)


def measure(
    theirs: StableDiffusion3Pipeline,
    folder: Path,
    encoders: tuple[str, ...],
    arguments: argparse.Namespace,
) -> None:
    """Time both, check that they draw the same, and print a row."""
    ours = Pipeline.from_pretrained(
        folder,
        encoders=encoders,
        t5_tokens=T5_TOKENS,
        dtype=DTYPES[arguments.precision],
    )
    config, side_px = theirs.transformer.config, arguments.side_px
    noise = torch.randn(1, config.in_channels, side_px // 8, side_px // 8)
    options: dict[str, Any] = {
        "prompt": PROMPT,
        "height": side_px,
        "width": side_px,
        "num_inference_steps": arguments.steps,
        "guidance_scale": 5.0,
        "output_type": "np",
    }
    found: dict[str, np.ndarray] = {}

    def draw(name: str) -> None:
        if name == "rectiflow":
            found[name] = ours(**options, latents=noise, solver="euler").images
        else:
            latents = noise.to(DTYPES[arguments.precision])
            found[name] = theirs(**options, latents=latents, max_sequence_length=T5_TOKENS).images

    times = interleaved_ms(
        {name: lambda name=name: draw(name) for name in ("rectiflow", "diffusers")},
        warm_up=1,
        repeats=arguments.repeats,
    )
    print_row(
        "pipeline",
        depth=arguments.depth,
        side_px=side_px,
        steps=arguments.steps,
        precision=arguments.precision,
        multiplied_in=ours.model.backbone.compute_dtype,
        encoders=encoders,
        repeats=arguments.repeats,
        picture_ms=times,
        largest_difference=float(np.abs(found["rectiflow"] - found["diffusers"]).max()),
        speedup=round(times["diffusers"]["median"] / times["rectiflow"]["median"], 3),
    )


if __name__ == "__main__":
    main()
