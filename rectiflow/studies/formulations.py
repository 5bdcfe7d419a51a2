"""Which formulation trains best? The paper's 61, ranked over samplers, weights and data.

Source: arXiv 2403.03206, section 5.1, tables 1 and 2, figure 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rectiflow.flow import ResolutionShift, paper_grid, parse_formulation
from rectiflow.recipes.small import small_run
from rectiflow.shapeworld.world import world_by_name
from rectiflow.studies.bench import Bench, PictureSet, best_step
from rectiflow.studies.drawing import PAPER_SETTINGS, SamplerSetting, shipped_drawer
from rectiflow.studies.formulations_report import leaders_of, report_formulations
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.study import Cell, Report, Row, Scale, Study
from rectiflow.training.recipe import TrainRecipe

#: The paper's winner, and what it re-times: they are always repeated.
QUESTIONED = ("rf/lognorm(0.00,1.00)", "rf")


@dataclass(frozen=True, kw_only=True)
class Formulations(Study):
    """Every formulation on every world with the first seed; the leaders with the others.

    `num_looks` checkpoints a run are kept; that of the least held-out EMA loss is sampled, by EMA
    and by raw weights, in each of `settings`.
    """

    name: ClassVar[str] = "formulations"
    question: ClassVar[str] = "Which formulation trains best?"
    source: ClassVar[str] = "tables 1 and 2 and figure 3"

    formulations: tuple[str, ...] = tuple(map(str, paper_grid()))
    worlds: tuple[str, ...] = ("small",)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_leaders: int = 4
    settings: tuple[SamplerSetting, ...] = PAPER_SETTINGS
    depth: int
    num_steps: int
    num_looks: int = 4
    num_pictures: int
    per_task: int
    reference_per_task: int = REFERENCE_PER_TASK

    @property
    def shift(self) -> ResolutionShift:
        """That of all its recipes."""
        return self._recipe(self.formulations[0], self.seeds[0]).shift

    def cells(self) -> tuple[Cell, ...]:
        return tuple(self._cells(self.formulations, self.seeds[:1]))

    def second_round(self, rows: Sequence[Row]) -> tuple[Cell, ...]:
        names = leaders_of(rows, self.num_leaders)
        repeated = [name for name in self.formulations if name in (*names, *QUESTIONED)]
        return tuple(self._cells(repeated, self.seeds[1:]))

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        recipe = cell.recipe
        assert recipe is not None
        world = world_by_name(str(cell.factors["world"]))
        store = bench.store(PictureSet(world=world.name, count=self.num_pictures))
        trained = bench.train(recipe, store, folder)
        validations = trained.validations()
        step = best_step(validations)
        drawer = shipped_drawer(world, per_task=self.per_task)
        examiner = Examiner(world, drawer.prompts, reference_per_task=self.reference_per_task)
        rows: list[Row] = [
            {"kind": "validation", "step": v.step, "ema_loss": v.ema, "raw_loss": v.raw}
            for v in validations
            if v.is_finite
        ]
        for averaged in (True, False):
            backbone = trained.backbone_at(step, averaged=averaged)
            rows += [
                {
                    "kind": "samples",
                    "step": step,
                    "weights": "ema" if averaged else "raw",
                    "num_steps": setting.num_steps,
                    "guidance_scale": setting.guidance_scale,
                }
                | examiner.examine(drawer.draw(backbone, recipe, setting))
                for setting in self.settings
            ]
        return rows

    def report(self, rows: Sequence[Row]) -> Report:
        return report_formulations(self, rows)

    def _cells(self, names: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
        for world in self.worlds:
            for seed in seeds:
                for name in names:
                    yield Cell(
                        name=re.sub(r"[^A-Za-z0-9.-]+", "_", f"{world}-s{seed}-{name}").strip("_"),
                        factors={"formulation": name, "world": world, "seed": seed},
                        recipe=self._recipe(name, seed),
                    )

    def _recipe(self, name: str, seed: int) -> TrainRecipe:
        recipe = small_run(
            depth=self.depth, num_steps=self.num_steps, num_looks=self.num_looks, seed=seed
        )
        return replace(recipe, formulation=parse_formulation(name))


def formulations(scale: Scale) -> Formulations:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return Formulations(
                formulations=("rf/lognorm(0.00,1.00)", "rf", "eps/linear", "edm(-1.20,1.20)"),
                seeds=(0, 1),
                num_leaders=1,
                settings=(
                    SamplerSetting(num_steps=2, guidance_scale=1.0),
                    SamplerSetting(num_steps=2, guidance_scale=5.0),
                ),
                depth=1,
                num_steps=4,
                num_looks=2,
                num_pictures=48,
                per_task=1,
                reference_per_task=5,
            )
        case "cpu":
            return Formulations(depth=2, num_steps=600, num_pictures=12_000, per_task=8)
        case "gpu":
            return Formulations(
                worlds=("small", "full"),
                depth=6,
                num_steps=3000,
                num_pictures=100_000,
                per_task=143,
            )
