"""One trainer for every backbone: each learns, continues and is exported."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.small_backbones import CONFIGS
from safetensors.torch import load_file
from training.fake_feed import LENGTH, WIDTHS, FakeFeed, tiny_recipe

from rectiflow.generation.model import read_model_card
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.training.loop import train
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, train_step

KINDS = ("mmdit", "mmdit3", "dit", "crossdit", "uvit")


def config_for_fake_feed(kind: str) -> BackboneConfig:
    widths = {"context_dim": WIDTHS["t5"], "pooled_dim": WIDTHS["clip_l"] + WIDTHS["clip_g"]}
    config = replace(CONFIGS[kind], **widths, use_qk_norm=True)
    if isinstance(config, MMDiTConfig) and config.num_clip_tokens is not None:
        return replace(config, num_clip_tokens=LENGTH)
    return config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "optimizer",
    [AdamW(), Muon(orthogonalize_convolutions=True, rest=AdamW())],
    ids=["adamw", "muon"],
)
def test_the_first_loss_is_that_of_predicting_zero_and_it_falls(kind, optimizer) -> None:
    recipe = tiny_recipe(
        backbone=config_for_fake_feed(kind), optimizer=optimizer, max_steps=1000, precision="fp32"
    )
    state, batch = TrainState.start(recipe), FakeFeed().batch_at(0)
    example = draw(batch, recipe)
    losses = [train_step(state, batch, recipe).loss for _ in range(30)]
    assert losses[0] == pytest.approx((example.eps - example.x0).square().mean().item(), rel=1e-5)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_continues_and_exports_its_kind(kind: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(backbone=config_for_fake_feed(kind), max_steps=4)
    for steps in (2, 4):
        result = train(recipe, FakeFeed(), tmp_path / "run", max_steps=steps, progress=False)
    assert result.step == 4
    assert result.validation is not None
    assert read_model_card(result.model).backbone == recipe.backbone
    weights = load_file(result.model / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
