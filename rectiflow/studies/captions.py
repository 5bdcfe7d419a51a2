"""Which captions teach a model most: terse ones, full ones, or half of each?

Terse captions follow GenEval's templates and leave most of a picture out, as captions found beside
pictures do; full ones name every object with colour and place, as a captioning model would. The
benchmark's prompts are terse. Source: arXiv 2403.03206, section 5.2.2 and table 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rectiflow.recipes.small import small_run
from rectiflow.shapeworld.world import world_by_name
from rectiflow.studies.bench import Bench, PictureSet
from rectiflow.studies.captions_report import FULL, MIXED, TERSE, report_captions
from rectiflow.studies.drawing import RECIPE_SETTING, SamplerSetting, shipped_drawer
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.study import Cell, Report, Row, Scale, Study
from rectiflow.training.recipe import TrainRecipe

#: Weights of the caption variants of a store, by the name under which they are compared.
MIXES = {
    TERSE: {"terse": 1.0, "full": 0.0},
    FULL: {"terse": 0.0, "full": 1.0},
    MIXED: {"terse": 0.5, "full": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Captions(Study):
    """The same run with each mix of captions, scored by the benchmark's terse prompts.

    The last averaged weights are sampled: the held-out losses of two mixes are of different
    captions and choose nothing.
    """

    name: ClassVar[str] = "captions"
    question: ClassVar[str] = "Does a mix of terse and full captions teach more than terse ones?"
    source: ClassVar[str] = "table 4"

    world: str = "small"
    seeds: tuple[int, ...] = (0, 1, 2)
    setting: SamplerSetting = RECIPE_SETTING
    depth: int
    num_steps: int
    num_pictures: int
    per_task: int
    reference_per_task: int = REFERENCE_PER_TASK

    def cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(
                name=f"{captions}-s{seed}",
                factors={"captions": captions, "seed": seed},
                recipe=self._recipe(captions, seed),
            )
            for seed in self.seeds
            for captions in MIXES
        )

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        recipe = cell.recipe
        assert recipe is not None
        store = bench.store(PictureSet(world=self.world, count=self.num_pictures))
        trained = bench.train(recipe, store, folder)
        drawer = shipped_drawer(world_by_name(self.world), per_task=self.per_task)
        backbone = trained.backbone_at(recipe.max_steps, averaged=True)
        images = drawer.draw(backbone, recipe, self.setting)
        examiner = Examiner(
            drawer.world, drawer.prompts, reference_per_task=self.reference_per_task
        )
        return [examiner.examine(images)]

    def report(self, rows: Sequence[Row]) -> Report:
        return report_captions(self, rows)

    def _recipe(self, captions: str, seed: int) -> TrainRecipe:
        recipe = small_run(depth=self.depth, num_steps=self.num_steps, num_looks=1, seed=seed)
        return replace(recipe, caption_mix=MIXES[captions])


def captions(scale: Scale) -> Captions:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return Captions(
                seeds=(0, 1),
                setting=SamplerSetting(num_steps=2, guidance_scale=3.0),
                depth=1,
                num_steps=4,
                num_pictures=48,
                per_task=1,
                reference_per_task=2,
            )
        case "cpu":
            return Captions(depth=2, num_steps=1000, num_pictures=12_000, per_task=40)
        case "gpu":
            return Captions(
                world="full", depth=6, num_steps=8000, num_pictures=100_000, per_task=143
            )
