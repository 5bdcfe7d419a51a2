"""Variants of the demo's recipe by their options, and the loss by what of the text is there."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rectiflow.data.records import Batch
from rectiflow.models.conditioning import Conditioning
from rectiflow.recipes.small import BACKBONES, RATE_TIMES_WIDTH, small
from rectiflow.training.ema import EmaConfig
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.step import condition, posterior_and_noise

LEVEL = 0.9


def variant_parser(about: str | None) -> argparse.ArgumentParser:
    """For a program with this docstring; every option's default is the demo's former recipe."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--qk-norm", action="store_true")
    parser.add_argument("--encoder-dropout", type=float, default=0.464)
    parser.add_argument("--pooled-dropout", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1.0, help="times 0.4/width")
    parser.add_argument("--muon", type=float, default=0.0, help="its rate, times AdamW's")
    parser.add_argument("--convolutions", action="store_true", help="Muon takes them too")
    parser.add_argument("--newton-schulz", type=int, default=5)
    parser.add_argument("--stratified-times", action="store_true")
    parser.add_argument("--contrast", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def variant(chosen: argparse.Namespace, steps: int) -> TrainRecipe:
    """The recipe that the options ask for."""
    backbone = replace(
        BACKBONES["uvit"](chosen.depth),
        width=chosen.width,
        head_dim=chosen.head_dim,
        use_qk_norm=chosen.qk_norm,
    )
    rate = chosen.rate * RATE_TIMES_WIDTH / chosen.width
    optimizer = AdamW(learning_rate=rate)
    if chosen.muon:
        optimizer = Muon(
            learning_rate=chosen.muon * rate,
            num_newton_schulz_steps=chosen.newton_schulz,
            orthogonalize_convolutions=chosen.convolutions,
            rest=optimizer,
        )
    return replace(
        small("demo", backbone),
        seed=chosen.seed,
        batch_size=16,
        max_steps=steps,
        schedule=Trapezoid(warmup_steps=100, decay_fraction=0.4),
        ema=EmaConfig(decay=0.998),
        optimizer=optimizer,
        encoder_dropout=chosen.encoder_dropout,
        pooled_dropout=chosen.pooled_dropout,
        stratified_times=chosen.stratified_times,
        contrast=chosen.contrast,
        validate_every=steps // 4,
        checkpoint_every=steps,
        sample_every=0,
    )


@torch.no_grad()
def losses(backbone: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Held-out loss at t = 0.9 by what of the text is there."""
    sums: dict[str, float] = dict.fromkeys(("all", "pooled", "tokens", "none"), 0.0)
    for batch in batches:
        x0, eps = posterior_and_noise(batch, batch.keys, stream=3)
        z_t, t = torch.lerp(x0, eps, LEVEL), torch.full((len(x0),), LEVEL)
        text = condition(batch, None)
        no_tokens, no_pooled = torch.zeros_like(text.context), torch.zeros_like(text.pooled)
        shown = {
            "all": text,
            "pooled": Conditioning(context=no_tokens, pooled=text.pooled),
            "tokens": Conditioning(context=text.context, pooled=no_pooled),
            "none": Conditioning(context=no_tokens, pooled=no_pooled),
        }
        for name, conditioning in shown.items():
            error = backbone(z_t, t, conditioning) - (eps - x0)
            sums[name] += error.square().mean(dim=(1, 2, 3)).sum().item()
    num = sum(map(len, batches))
    return {name: round(total / num, 3) for name, total in sums.items()}
