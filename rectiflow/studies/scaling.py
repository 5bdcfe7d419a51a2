"""Does the held-out loss tell quality, and does size pay? Runs of growing depth, scored on the way.

Source: arXiv 2403.03206, section 5.3.3, figure 8 and table 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rectiflow.recipes.small import small_run
from rectiflow.shapeworld.world import world_by_name
from rectiflow.studies.bench import Bench, PictureSet, TrainedRun
from rectiflow.studies.costs import size_row
from rectiflow.studies.drawing import RECIPE_SETTING, SamplerSetting, shipped_drawer
from rectiflow.studies.path_length import PathLength
from rectiflow.studies.scaling_report import report_scaling
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.study import Cell, Report, Row, Scale, Study

#: A backward pass costs two forward ones (arXiv 2001.08361, section 2.1).
FORWARDS_PER_TRAINED_PICTURE = 3


@dataclass(frozen=True, kw_only=True)
class Scaling(Study):
    """Runs of each depth and seed, all of the same steps on the same data.

    At each of `num_looks` checkpoints `per_task_of_looks` pictures of each task are scored in
    `setting`; after the last step `per_task`, by each number of `sweep_steps`.
    """

    name: ClassVar[str] = "scaling"
    question: ClassVar[str] = "Does size pay, and does the held-out loss tell it?"
    source: ClassVar[str] = "figure 8 and table 6"

    depths: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1)
    setting: SamplerSetting = RECIPE_SETTING
    sweep_steps: tuple[int, ...] = (5, 10, 20, 50)
    world: str = "small"
    num_steps: int
    num_looks: int = 5
    num_pictures: int
    per_task_of_looks: int
    per_task: int
    reference_per_task: int = REFERENCE_PER_TASK

    def cells(self) -> tuple[Cell, ...]:
        return tuple(self._cells())

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        recipe = cell.recipe
        assert recipe is not None
        store = bench.store(PictureSet(world=self.world, count=self.num_pictures))
        trained = bench.train(recipe, store, folder)
        size = size_row(recipe.backbone)
        return [*self._looks(trained, size), *self._sweep(trained, size)]

    def report(self, rows: Sequence[Row]) -> Report:
        return report_scaling(self, rows)

    def _cells(self) -> Iterator[Cell]:
        # The longest runs first, so that processes which share the grid end together.
        for depth in sorted(self.depths, reverse=True):
            for seed in self.seeds:
                yield Cell(
                    name=f"d{depth}-s{seed}",
                    factors={"depth": depth, "seed": seed},
                    recipe=small_run(
                        depth=depth, num_steps=self.num_steps, num_looks=self.num_looks, seed=seed
                    ),
                )

    def _looks(self, trained: TrainedRun, size: Row) -> Iterator[Row]:
        """Loss and scores of the EMA weights at each checkpoint, with the compute until then."""
        drawer = shipped_drawer(world_by_name(self.world), per_task=self.per_task_of_looks)
        examiner = Examiner(
            drawer.world, drawer.prompts, reference_per_task=self.reference_per_task
        )
        for validation in trained.finite_validations():
            backbone = trained.backbone_at(validation.step, averaged=True)
            num_images = validation.step * trained.recipe.batch_size
            yield (
                {
                    "kind": "look",
                    "step": validation.step,
                    "ema_loss": validation.ema,
                    "raw_loss": validation.raw,
                    "num_images": num_images,
                    "train_flops": FORWARDS_PER_TRAINED_PICTURE
                    * size["forward_flops"]
                    * num_images,
                }
                | size
                | examiner.examine(drawer.draw(backbone, trained.recipe, self.setting))
            )

    def _sweep(self, trained: TrainedRun, size: Row) -> Iterator[Row]:
        """Scores of the last EMA weights by steps, and the paths' lengths in the most steps."""
        drawer = shipped_drawer(world_by_name(self.world), per_task=self.per_task)
        examiner = Examiner(
            drawer.world, drawer.prompts, reference_per_task=self.reference_per_task
        )
        backbone = trained.backbone_at(self.num_steps, averaged=True)
        starts = drawer.starts(backbone, trained.recipe)
        dim = starts[0].numel()
        most, guided = max(self.sweep_steps), self.setting.guidance_scale
        for num_steps in self.sweep_steps:
            path = PathLength(starts)
            setting = SamplerSetting(num_steps=num_steps, guidance_scale=guided)
            images = drawer.draw(backbone, trained.recipe, setting, on_step=path)
            row: Row = {"kind": "sweep", "num_steps": num_steps, "guidance_scale": guided} | size
            yield row | examiner.examine(images)
            if num_steps == most:
                yield _path_row(path, dim, setting)
        unguided = SamplerSetting(num_steps=most, guidance_scale=1.0)
        path = PathLength(starts)
        drawer.draw(backbone, trained.recipe, unguided, on_step=path)
        yield _path_row(path, dim, unguided)


def _path_row(path: PathLength, dim: int, setting: SamplerSetting) -> Row:
    lengths = path.lengths()
    return {
        "kind": "path",
        "num_steps": setting.num_steps,
        "guidance_scale": setting.guidance_scale,
        "path_length": lengths.mean().item(),
        "path_length_std": lengths.std(correction=0).item(),
        "latent_dim": dim,
    }


def scaling(scale: Scale) -> Scaling:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return Scaling(
                depths=(1, 2),
                seeds=(0,),
                setting=SamplerSetting(num_steps=2, guidance_scale=3.0),
                sweep_steps=(1, 2, 3),
                num_steps=2,
                num_looks=2,
                num_pictures=48,
                per_task_of_looks=1,
                per_task=1,
                reference_per_task=3,
            )
        case "cpu":
            return Scaling(
                depths=(1, 2, 3, 4),
                num_steps=600,
                num_pictures=12_000,
                per_task_of_looks=5,
                per_task=10,
            )
        case "gpu":
            return Scaling(
                depths=(2, 4, 6, 8, 12),
                world="full",
                num_steps=10_000,
                num_looks=8,
                num_pictures=100_000,
                per_task_of_looks=40,
                per_task=143,
            )
