"""Does QK-normalisation keep training stable? Rates far above the recipe's, with and without.

The paper met the instability at high resolution in mixed precision, as attention logits that grow
until the loss is lost. Small pictures in float32 do not show it by themselves; large rates do.
Source: arXiv 2403.03206, section 5.3.2 and figure 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from rectiflow.base.errors import ConfigError, DivergedError
from rectiflow.base.log import read_events
from rectiflow.models.attention_probe import observe_attention
from rectiflow.models.frame import Backbone
from rectiflow.models.precision import Precision
from rectiflow.recipes.small import RATE_TIMES_WIDTH, small_run
from rectiflow.studies.bench import Bench, PictureSet, TrainedRun
from rectiflow.studies.qk_norm_report import report_qk_norm
from rectiflow.studies.study import Cell, Report, Row, Scale, Study
from rectiflow.training.checkpoint import checkpoint_of
from rectiflow.training.feed import open_feed
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, forward

#: So that the last blocks, where the paper sees the instability, can be told from the first.
LEAST_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class QKNorm(Study):
    """Every rate × norm × precision × seed; `rates` are multiples of the small recipe's.

    Attention is observed at `num_looks` checkpoints and before the first step, by raw weights,
    on held-out pictures. A diverged run keeps what was seen of it.
    """

    name: ClassVar[str] = "qk-norm"
    question: ClassVar[str] = "Does QK-normalisation keep training stable?"
    source: ClassVar[str] = "figure 5"

    rates: tuple[float, ...] = (1.0, 4.0, 16.0)
    precisions: tuple[Precision, ...] = ("fp32",)
    seeds: tuple[int, ...] = (0,)
    world: str = "small"
    depth: int
    num_steps: int
    num_looks: int = 8
    num_pictures: int

    def __post_init__(self) -> None:
        if self.depth < LEAST_DEPTH:
            raise ConfigError(
                f"depth is {self.depth}; give at least {LEAST_DEPTH}, so that the last blocks can "
                "be told from the first"
            )

    def cells(self) -> tuple[Cell, ...]:
        return tuple(self._cells())

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        recipe = cell.recipe
        assert recipe is not None
        feed = open_feed(bench.store(PictureSet(world=self.world, count=self.num_pictures)), recipe)
        trained = bench.trained(recipe, feed, folder)
        try:
            bench.train(recipe, feed, folder)
            trained.finite_validations()  # one that ends without a finite loss has diverged too
            ending: list[Row] = []
        except DivergedError:
            # What led there is the answer, so it is kept beside the mark.
            ending = [{"kind": "ending", "diverged": True}]
        return [*_attention(trained), *_losses(trained), *ending]

    def report(self, rows: Sequence[Row]) -> Report:
        return report_qk_norm(self, rows)

    def _cells(self) -> Iterator[Cell]:
        for seed in self.seeds:
            for precision in self.precisions:
                for rate in self.rates:
                    for use_qk_norm in (False, True):
                        norm = "norm" if use_qk_norm else "plain"
                        yield Cell(
                            name=f"{precision}-x{rate:g}-{norm}-s{seed}",
                            factors={
                                "qk_norm": use_qk_norm,
                                "rate": rate,
                                "precision": precision,
                                "seed": seed,
                            },
                            recipe=self._recipe(use_qk_norm, rate, precision, seed),
                        )

    def _recipe(
        self, use_qk_norm: bool, rate: float, precision: Precision, seed: int
    ) -> TrainRecipe:
        recipe = small_run(
            depth=self.depth, num_steps=self.num_steps, num_looks=self.num_looks, seed=seed
        )
        backbone = replace(recipe.backbone, use_qk_norm=use_qk_norm)
        return replace(
            recipe,
            backbone=backbone,
            optimizer=AdamW(learning_rate=rate * RATE_TIMES_WIDTH / backbone.hidden_dim),
            precision=precision,
            log_every=max(1, min(recipe.log_every, recipe.validate_every)),
        )


def _attention(trained: TrainedRun) -> Iterator[Row]:
    """What attention does at each checkpoint that was kept, and before the first step."""
    # Noise, times and captions as in training, nothing dropped; a function of the keys alone.
    batch = trained.feed.validation[0].to(trained.device)
    example = draw(batch, replace(trained.recipe, encoder_dropout=0.0))
    for step, backbone in _kept(trained):
        with torch.no_grad(), observe_attention(backbone) as blocks:
            forward(backbone, example, trained.recipe)
        yield {
            "kind": "attention",
            "step": step,
            "largest_logits": [block.max_logit for block in blocks],
            "entropies": [block.entropy for block in blocks],
        }


def _kept(trained: TrainedRun) -> Iterator[tuple[int, Backbone]]:
    """Raw weights at step 0 and at every kept checkpoint, in order."""
    recipe = trained.recipe
    yield 0, TrainState.start(recipe).backbone.to(trained.device).eval()
    for step in range(recipe.checkpoint_every, recipe.max_steps + 1, recipe.checkpoint_every):
        if checkpoint_of(trained.folder, step).exists():
            yield step, trained.backbone_at(step, averaged=False)


def _losses(trained: TrainedRun) -> Iterator[Row]:
    """Training and held-out losses over the run; those that are not finite are left out."""
    log = trained.folder / "metrics.jsonl"
    for event in read_events(log, "train"):
        # The log spells numbers that are not finite.
        if math.isfinite(float(event["loss"])) and math.isfinite(float(event["gradient_norm"])):
            yield {
                "kind": "training",
                "step": event["step"],
                "loss": event["loss"],
                "gradient_norm": event["gradient_norm"],
            }
    for validation in trained.validations():
        if validation.is_finite:
            yield {
                "kind": "validation",
                "step": validation.step,
                "ema_loss": validation.ema,
                "raw_loss": validation.raw,
            }


def qk_norm(scale: Scale) -> QKNorm:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return QKNorm(rates=(16.0,), depth=3, num_steps=2, num_looks=2, num_pictures=48)
        case "cpu":
            return QKNorm(depth=3, num_steps=400, num_pictures=12_000)
        case "gpu":
            return QKNorm(
                rates=(1.0, 4.0, 16.0, 64.0),
                precisions=("fp32", "bf16"),
                seeds=(0, 1, 2),
                world="full",
                depth=8,
                num_steps=3000,
                num_looks=12,
                num_pictures=100_000,
            )
