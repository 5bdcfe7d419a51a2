"""Recipes for the embedded world, sized for two processor cores.

They follow arXiv 2403.03206 in path, prediction and dropout and differ in size; `demo`, `tiny` and
`tiny-mmdit` drop text otherwise (`_reading`). The text widths are those of the shipped encoders.

Times are shifted towards noise, in training and in sampling, as the paper does for pictures of
many pixels (section 5.3.2). The reason holds here for another cause: a shape tells the same thing
in every latent that it covers, so that noise hides it late. Of the bits that say which picture of
the small world it is, the exact posterior leaves 3 % open at t = 0.8 and 98 % at t = 0.98; a
standard logit-normal draws 8 % of its times between the two, one shifted by α = 6 64 %.

Learning rates fall as 1/width, and short runs take small batches of a narrow model: what a run of
minutes learns is limited by the number of its updates. Measured in
`experiments/2026-11-24_what_a_short_run_learns_from`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rectiflow.flow import ResolutionShift
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.baselines.crossdit import CrossDiTConfig
from rectiflow.models.baselines.dit import DiTConfig
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.sampling import Ancestral, SamplingDefaults
from rectiflow.training.ema import EmaConfig
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid

SAMPLE_PROMPTS = (
    "a photo of a red circle",
    "a photo of a circle and a square",
    "a photo of three circles",
    "a photo of a triangle",
    "a photo of a circle left of a square",
    "a photo of a red circle and a blue square",
    'the word "AC" in red',
    "a yellow cross top left and a purple ring bottom right",
)

SHIFT = ResolutionShift(alpha=6.0)
#: The peak learning rate is this over the width, as in arXiv 2203.03466, table 3, for Adam.
RATE_TIMES_WIDTH = 0.4


#: 64-pixel pictures (4×4 tokens, room for 256 px) and the widths of the shipped encoders.
_SIZES: dict[str, Any] = {
    "context_dim": 192,
    "pooled_dim": 160,
    "position_side": 16,
    "base_side": 4,
}
NUM_CLIP_TOKENS = 16

#: Backbones for the embedded world by name, as functions of their depth.
BACKBONES: dict[str, Callable[[int], BackboneConfig]] = {
    "mmdit": lambda depth: MMDiTConfig(depth=depth, **_SIZES),
    "mmdit3": lambda depth: MMDiTConfig(depth=depth, num_clip_tokens=NUM_CLIP_TOKENS, **_SIZES),
    "dit": lambda depth: DiTConfig(depth=depth, **_SIZES),
    "crossdit": lambda depth: CrossDiTConfig(depth=depth, **_SIZES),
    "uvit": lambda depth: UViTConfig(depth=depth, **_SIZES),
}


def mmdit(depth: int) -> TrainRecipe:
    """An MM-DiT of any depth (width 64·depth) on the embedded world, with AdamW."""
    return small(f"mmdit-d{depth}", BACKBONES["mmdit"](depth))


def small(name: str, backbone: BackboneConfig) -> TrainRecipe:
    """Any backbone on the embedded world, all trained alike: with AdamW, the rate by the width."""
    return TrainRecipe(
        name=name,
        backbone=backbone,
        shift=SHIFT,
        max_steps=20_000,
        optimizer=AdamW(learning_rate=RATE_TIMES_WIDTH / backbone.hidden_dim),
        schedule=Trapezoid(warmup_steps=200, decay_fraction=0.3),
        ema=EmaConfig(decay=0.999),
        sample_every=1000,
        sample_prompts=SAMPLE_PROMPTS,
        sampling=SamplingDefaults(num_steps=28, guidance_scale=3.0),
    )


def _reading(recipe: TrainRecipe, *, haste: float = 1.0) -> TrainRecipe:
    """The recipe changed so that its model soon reads the tokens of its text.

    With AdamW and SD3's dropout a small model of hours makes do with the pooled vector, which
    cannot tell it well what goes where. Measured in `experiments/2026-11-28_which_text_is_read`.
    """
    rate = haste * recipe.optimizer.learning_rate
    return replace(
        recipe,
        backbone=replace(recipe.backbone, use_qk_norm=True),
        optimizer=Muon(
            learning_rate=rate,
            num_newton_schulz_steps=3,
            orthogonalize_convolutions=True,
            rest=AdamW(learning_rate=rate),
        ),
        stratified_times=True,
        encoder_dropout=0.1,
        pooled_dropout=0.5,
    )


def demo() -> TrainRecipe:
    """Ten minutes of training on two cores; the demo sets `max_steps` to what its budget allows.

    A UViT, whose convolutions are several times as quick to learn how things look; an MM-DiT of
    that budget draws much less of what it is asked. Measured in
    `experiments/2026-11-25_a_backbone_for_ten_minutes`.
    """
    return replace(
        _reading(small("demo", BACKBONES["uvit"](2))),
        batch_size=16,
        max_steps=4500,
        schedule=Trapezoid(warmup_steps=100, decay_fraction=0.4),
        ema=EmaConfig(decay=0.998),
        validate_every=500,
        checkpoint_every=1000,
        sample_every=1000,
    )


def tiny() -> TrainRecipe:
    """The model that ships with the package: deeper and wider than the demo's, of two hours."""
    recipe = _reading(small("tiny", replace(BACKBONES["uvit"](3), width=192)))
    return _of_hours(recipe, max_steps=18_000)


def tiny_mmdit() -> TrainRecipe:
    """The shipped MM-DiT, of the released models' layout and proportions; some three hours.

    A rate of twice the UViT's learns faster at first, and has single steps of a hundred times the
    loss later. Measured in `experiments/2026-11-28_an_mmdit_to_ship`.
    """
    recipe = _reading(small("tiny-mmdit", BACKBONES["mmdit"](3)), haste=1.25)
    return _of_hours(recipe, max_steps=40_000)


def _of_hours(recipe: TrainRecipe, *, max_steps: int) -> TrainRecipe:
    """The recipe for a long run, whose model is drawn with new noise at each step.

    A model that has learned what belongs where draws it better so, others do not. Measured in
    `experiments/2026-11-29_new_noise_at_each_step`.
    """
    return replace(
        recipe,
        batch_size=32,
        max_steps=max_steps,
        schedule=Trapezoid(warmup_steps=200, decay_fraction=0.6),
        validate_every=1000,
        checkpoint_every=1000,
        sample_every=4000,
        sampling=replace(recipe.sampling, solver=Ancestral()),
    )


def small_run(*, depth: int, num_steps: int, num_looks: int, seed: int = 0) -> TrainRecipe:
    """A short run for comparisons: validated, and its state kept, at `num_looks` even places.

    A comparison of recipes changes one thing in it by `replace`.
    """
    every = max(1, num_steps // num_looks)
    return replace(
        mmdit(depth),
        name=f"small-run-d{depth}",
        seed=seed,
        batch_size=16,
        max_steps=num_steps,
        schedule=Trapezoid(warmup_steps=min(100, num_steps // 4), decay_fraction=0.4),
        ema=EmaConfig(decay=0.995),
        num_validation=min(64, 8 * num_steps),
        validate_every=every,
        checkpoint_every=every,
        keep_last=num_looks + 1,
        sample_every=0,
        sample_prompts=(),
    )
