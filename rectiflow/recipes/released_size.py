"""The paper's own training: an MM-DiT on the states of the released autoencoder and text encoders.

For a store of `rectiflow encode --parts MODEL --resolution 256`. Source: arXiv 2403.03206, section
5.3 and appendix B.3; what the paper leaves open is marked.
"""

from __future__ import annotations

from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.ema import EmaConfig
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid

RESOLUTION_PX = 256
#: Tokens of 16 px along a side of the squares; positions reach three times as far, as released.
_BASE_SIDE = RESOLUTION_PX // 16


def sd3(depth: int) -> TrainRecipe:
    """An MM-DiT of width 64·depth from nothing, at 256 px; depth 24 is SD3-medium's size.

    Times are drawn from a logit-normal without a shift, which belongs to more pixels. QK-norm and
    AdamW's epsilon are what section 5.3.2 takes for bfloat16. Betas, weight decay and the sampling
    of the finished model are not the paper's, which does not say them.
    """
    return TrainRecipe(
        name=f"sd3-d{depth}",
        backbone=MMDiTConfig(
            depth=depth, position_side=3 * _BASE_SIDE, base_side=_BASE_SIDE, use_qk_norm=True
        ),
        resolution_px=RESOLUTION_PX,
        batch_size=4096,
        micro_batch=32,
        max_steps=500_000,
        optimizer=AdamW(learning_rate=1e-4, betas=(0.9, 0.999), eps=1e-15),
        schedule=Trapezoid(warmup_steps=1000, decay_fraction=0.0),
        ema=EmaConfig(decay=0.99, every=100),
        num_validation=1024,
        validate_every=5000,
        checkpoint_every=1000,
        sample_every=5000,
        sample_prompts=(
            "a photo of a red apple on a wooden table",
            "a corgi wearing a blue scarf, studio light",
            'a street sign that says "rectified"',
            "two cats beside a green vase, oil painting",
        ),
        sampling=SamplingDefaults(num_steps=50, guidance_scale=5.0),
    )
