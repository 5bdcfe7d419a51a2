"""How many channels should latents have?

Autoencoders that differ in channels alone are trained by the same short recipe and scored on what
they reconstruct; then models of several depths are trained on the latents of each. More channels
reconstruct better and are harder to generate. Source: arXiv 2403.03206, section 5.2.1, table 3 and
figure 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rectiflow.evaluation.autoencoder import AutoencoderScore, evaluate_autoencoder
from rectiflow.evaluation.clip import load_embedded_clip
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.shipped import load_conditioner
from rectiflow.recipes.parts.autoencoder import CONFIG, STAGES, Stage, trained_autoencoder
from rectiflow.recipes.small import small_run
from rectiflow.shapeworld.world import FULL, SMALL, world_by_name
from rectiflow.studies.autoencoder_channels_report import (
    GENERATION,
    RECONSTRUCTION,
    report_autoencoder_channels,
)
from rectiflow.studies.bench import Bench, PictureSet
from rectiflow.studies.drawing import RECIPE_SETTING, Drawer, SamplerSetting
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.study import Cell, Report, Row, Scale, Study
from rectiflow.training.recipe import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class AutoencoderChannels(Study):
    """Reconstruction by each of `channels`, then generation with each of `depths` on its latents.

    `stage_steps` are the lengths of the two stages of the shipped autoencoder's recipe;
    `num_statistics` pictures give the latents' mean and scale. Reconstructions are
    `num_per_task` pictures a task of both worlds; models are trained on `world`.
    """

    name: ClassVar[str] = "autoencoder-channels"
    question: ClassVar[str] = "How many channels should an autoencoder's latents have?"
    source: ClassVar[str] = "table 3 and figure 10"

    world: str = "small"
    channels: tuple[int, ...] = (4, 8, 16)
    depths: tuple[int, ...] = (1, 2, 3)
    seeds: tuple[int, ...] = (0, 1)
    setting: SamplerSetting = RECIPE_SETTING
    stage_steps: tuple[int, int]
    num_statistics: int = 512
    num_per_task: int
    num_steps: int
    num_pictures: int
    per_task: int
    reference_per_task: int = REFERENCE_PER_TASK

    def cells(self) -> tuple[Cell, ...]:
        # Autoencoders first: while one process trains one, another can train the next.
        autoencoders = tuple(
            Cell(
                name=f"autoencoder-{channels}ch",
                factors={"kind": RECONSTRUCTION, "channels": channels},
            )
            for channels in self.channels
        )
        models = tuple(
            Cell(
                name=f"{channels}ch-d{depth}-s{seed}",
                factors={
                    "kind": GENERATION,
                    "channels": channels,
                    "depth": depth,
                    "seed": seed,
                },
                recipe=self._recipe(channels, depth, seed),
            )
            for channels in self.channels
            for seed in self.seeds
            for depth in self.depths
        )
        return autoencoders + models

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        channels = int(cell.factors["channels"])
        if cell.recipe is None:
            autoencoder, clip = self._autoencoder(bench, channels), load_embedded_clip()
            return [
                _flat(
                    evaluate_autoencoder(autoencoder, world, clip, num_per_task=self.num_per_task)
                )
                for world in (SMALL, FULL)
            ]
        return [self._generate(cell.recipe, bench, folder, channels)]

    def report(self, rows: Sequence[Row]) -> Report:
        return report_autoencoder_channels(self, rows)

    def _generate(self, recipe: TrainRecipe, bench: Bench, folder: Path, channels: int) -> Row:
        store = bench.store(
            PictureSet(world=self.world, count=self.num_pictures),
            name=f"{channels}ch",
            autoencoder=lambda: self._autoencoder(bench, channels),
        )
        trained = bench.train(recipe, store, folder)
        drawer = Drawer(
            world=world_by_name(self.world),
            per_task=self.per_task,
            autoencoder=self._autoencoder(bench, channels),
            conditioner=load_conditioner(),
        )
        backbone = trained.backbone_at(recipe.max_steps, averaged=True)
        examiner = Examiner(
            drawer.world, drawer.prompts, reference_per_task=self.reference_per_task
        )
        return examiner.examine(drawer.draw(backbone, recipe, self.setting))

    def _autoencoder(self, bench: Bench, channels: int) -> Autoencoder:
        def make() -> Autoencoder:
            return trained_autoencoder(
                replace(CONFIG, latent_channels=channels),
                tuple(map(_shortened, STAGES, self.stage_steps)),
                lambda _: None,
                num_statistics=self.num_statistics,
            )

        return bench.autoencoder(f"{channels}ch", make)

    def _recipe(self, channels: int, depth: int, seed: int) -> TrainRecipe:
        recipe = small_run(depth=depth, num_steps=self.num_steps, num_looks=1, seed=seed)
        return replace(recipe, backbone=replace(recipe.backbone, in_channels=channels))


def autoencoder_channels(scale: Scale) -> AutoencoderChannels:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return AutoencoderChannels(
                channels=(4, 8),
                depths=(1, 2),
                seeds=(0,),
                setting=SamplerSetting(num_steps=2, guidance_scale=3.0),
                stage_steps=(2, 1),
                num_statistics=16,
                num_per_task=1,
                num_steps=2,
                num_pictures=48,
                per_task=1,
                reference_per_task=2,
            )
        case "cpu":
            return AutoencoderChannels(
                stage_steps=(450, 250),
                num_per_task=30,
                num_steps=700,
                num_pictures=6000,
                per_task=20,
            )
        case "gpu":
            return AutoencoderChannels(
                world="full",
                depths=(2, 4, 8),
                stage_steps=(6000, 4000),
                num_per_task=143,
                num_steps=6000,
                num_pictures=100_000,
                per_task=143,
            )


def _shortened(stage: Stage, num_steps: int) -> Stage:
    return replace(stage, training=replace(stage.training, num_steps=num_steps))


def _flat(score: AutoencoderScore) -> Row:
    assert score.frechet is not None
    return {
        "world": score.world,
        "autoencoder": score.autoencoder,
        "psnr_db": score.psnr_db,
        "ssim": score.ssim,
        "perceptual": score.perceptual,
        "frechet": score.frechet.value,
        "oracle": score.oracle.mean,
        "oracle_low": score.oracle.low,
        "oracle_high": score.oracle.high,
        "num_pictures": score.num_pictures,
    } | {f"oracle {task}": interval.mean for task, interval in score.tasks.items()}
