"""Which shift of times does a model need at a higher resolution?

A model of low resolution is fine-tuned at a high one, with its own shift times 1, 2, 3, … in
training and sampling alike; sampling alone is shifted as well, as the paper's human study did. More
tokens show the same picture more often, so that noise hides it later: by theory the shift grows by
sqrt(m/n) from n to m tokens. Source: arXiv 2403.03206, section 5.3.2, equation 23 and figure 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rectiflow.flow import ResolutionShift
from rectiflow.generation.model import ModelCard, read_model_card
from rectiflow.models.model_folder import find_model_folder
from rectiflow.recipes.small import RATE_TIMES_WIDTH, small_run
from rectiflow.shapeworld.world import world_by_name
from rectiflow.studies.bench import Bench, PictureSet
from rectiflow.studies.drawing import RECIPE_SETTING, SamplerSetting, shipped_drawer
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.shift_report import report_shift
from rectiflow.studies.study import Cell, Report, Row, Scale, Study
from rectiflow.training.recipe import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class Shift(Study):
    """The same fine-tuning with each of `multipliers`, of the model's own shift.

    The run of multiplier 1 is also sampled with each of `sampled`. `model` is a shipped model's
    name, which every machine shares; a folder of one's own binds the grid to its path. Learning
    rates are `rate_factor` of a first training's.
    """

    name: ClassVar[str] = "shift"
    question: ClassVar[str] = "Does a model at a higher resolution need its times shifted?"
    source: ClassVar[str] = "figure 6 and section 5.3.2"

    model: str = "tiny"
    world: str = "small"
    resolution_px: int = 128
    multipliers: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    sampled: tuple[float, ...] = (0.5, 1.5, 2.0, 3.0, 4.0, 6.0)
    seeds: tuple[int, ...] = (0, 1)
    setting: SamplerSetting = RECIPE_SETTING
    rate_factor: float = 0.25
    num_steps: int
    num_pictures: int
    per_task: int
    reference_per_task: int = REFERENCE_PER_TASK

    @property
    def theory(self) -> float:
        """The multiplier of equal uncertainty, sqrt(m/n) for n tokens before and m now."""
        # Tokens grow as pixels do.
        before_px, now_px = self.card().resolution_px, self.resolution_px
        return ResolutionShift.between(before_px**2, now_px**2).alpha

    def card(self) -> ModelCard:
        """What the model says of itself.

        Raises:
            UserError: there is no such model.
        """
        return read_model_card(find_model_folder(self.model))

    def cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(
                name=f"x{multiplier:g}-s{seed}",
                factors={"multiplier": multiplier, "seed": seed},
                recipe=self._recipe(multiplier, seed),
            )
            for seed in self.seeds
            for multiplier in self.multipliers
        )

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        recipe = cell.recipe
        assert recipe is not None
        wanted = PictureSet(
            world=self.world, count=self.num_pictures, resolution_px=self.resolution_px
        )
        trained = bench.train(recipe, bench.store(wanted), folder)
        backbone = trained.backbone_at(recipe.max_steps, averaged=True)
        drawer = shipped_drawer(
            world_by_name(self.world), per_task=self.per_task, resolution_px=self.resolution_px
        )
        examiner = Examiner(
            drawer.world,
            drawer.prompts,
            scale=wanted.scale,
            reference_per_task=self.reference_per_task,
        )
        multiplier = float(cell.factors["multiplier"])
        rows: list[Row] = []
        for kind, sampled in [
            ("trained", multiplier),
            *(("sampled", sampled) for sampled in self.sampled if multiplier == 1.0),
        ]:
            shift = self._shift(sampled)
            images = drawer.draw(backbone, replace(recipe, shift=shift), self.setting)
            measured = {"kind": kind, "sampled": sampled, "alpha": shift.alpha}
            rows.append(measured | examiner.examine(images))
        return rows

    def report(self, rows: Sequence[Row]) -> Report:
        return report_shift(self, rows)

    def _shift(self, multiplier: float) -> ResolutionShift:
        own = ResolutionShift(alpha=self.card().sampling.shift)
        return own.then(ResolutionShift(alpha=multiplier))

    def _recipe(self, multiplier: float, seed: int) -> TrainRecipe:
        card = self.card()
        recipe = small_run(
            depth=card.backbone.depth, num_steps=self.num_steps, num_looks=1, seed=seed
        )
        rate = self.rate_factor * RATE_TIMES_WIDTH / card.backbone.hidden_dim
        return replace(
            recipe,
            name=f"fine-tuned-{self.resolution_px}px",
            backbone=card.backbone,
            start_from=self.model,
            formulation=card.formulation,
            shift=self._shift(multiplier),
            optimizer=replace(recipe.optimizer, learning_rate=rate),
        )


def shift(scale: Scale) -> Shift:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return Shift(
                multipliers=(1.0, 2.0),
                sampled=(2.0,),
                seeds=(0,),
                setting=SamplerSetting(num_steps=2, guidance_scale=3.0),
                num_steps=2,
                num_pictures=48,
                per_task=1,
                reference_per_task=2,
            )
        case "cpu":
            return Shift(
                sampled=(0.5, 1.5, 2.0, 3.0, 4.0), num_steps=250, num_pictures=4000, per_task=15
            )
        case "gpu":
            return Shift(
                multipliers=(0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
                seeds=(0, 1, 2),
                num_steps=5000,
                num_pictures=100_000,
                per_task=143,
            )
