"""Which backbone trains best? MM-DiT with two and three sets of weights, DiT, CrossDiT, UViT.

The paper gives neither sizes nor what was held equal, so they are compared twice: at the forward
FLOPs of the reference, and at its parameters. The reference is the MM-DiT with two sets.
Source: arXiv 2403.03206, section 5.2.3 and figure 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.matching import matched
from rectiflow.recipes.small import BACKBONES, NUM_CLIP_TOKENS, RATE_TIMES_WIDTH, small_run
from rectiflow.shapeworld.world import world_by_name
from rectiflow.studies.backbones_report import BOTH, MATCHES, REFERENCE, report_backbones
from rectiflow.studies.bench import Bench, PictureSet
from rectiflow.studies.costs import SAMPLE, size_row
from rectiflow.studies.drawing import RECIPE_SETTING, SamplerSetting, shipped_drawer
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.study import Cell, Report, Row, Scale, Study
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe


@dataclass(frozen=True, kw_only=True)
class Backbones(Study):
    """Each backbone with `seeds` at equal FLOPs and with `parameter_seeds` at equal parameters.

    The reference has `depth` blocks, and its runs count for both comparisons. The rate is the
    small recipe's, over each backbone's own width.
    """

    name: ClassVar[str] = "backbones"
    question: ClassVar[str] = "Which backbone trains best?"
    source: ClassVar[str] = "figure 4"

    backbones: tuple[str, ...] = ("mmdit", "mmdit3", "dit", "crossdit", "uvit")
    seeds: tuple[int, ...] = (0, 1, 2)
    parameter_seeds: tuple[int, ...] = (0, 1)
    setting: SamplerSetting = RECIPE_SETTING
    world: str = "small"
    depth: int
    num_steps: int
    num_looks: int = 5
    num_pictures: int
    per_task: int
    reference_per_task: int = REFERENCE_PER_TASK

    def cells(self) -> tuple[Cell, ...]:
        return tuple(self._cells())

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        recipe = cell.recipe
        assert recipe is not None
        world = world_by_name(self.world)
        store = bench.store(PictureSet(world=world.name, count=self.num_pictures))
        trained = bench.train(recipe, store, folder)
        drawer = shipped_drawer(world, per_task=self.per_task)
        images = drawer.draw(
            trained.backbone_at(self.num_steps, averaged=True), recipe, self.setting
        )
        scores = Examiner(
            world, drawer.prompts, reference_per_task=self.reference_per_task
        ).examine(images)
        return [
            {"kind": "size"} | size_row(recipe.backbone),
            *(
                {"kind": "validation", "step": v.step, "ema_loss": v.ema, "raw_loss": v.raw}
                for v in trained.finite_validations()
            ),
            {"kind": "samples", "step": self.num_steps} | scores,
        ]

    def report(self, rows: Sequence[Row]) -> Report:
        return report_backbones(self, rows)

    def _cells(self) -> Iterator[Cell]:
        for match, seeds in zip(MATCHES, (self.seeds, self.parameter_seeds), strict=True):
            candidates = matching_backbones(self.depth, match)
            for seed in seeds:
                for name in self.backbones:
                    is_reference = name == REFERENCE
                    if is_reference and match != MATCHES[0]:
                        continue
                    yield Cell(
                        name=f"{match}-{name}-s{seed}",
                        factors={
                            "backbone": name,
                            "matched": BOTH if is_reference else match,
                            "seed": seed,
                        },
                        recipe=self._recipe(name, candidates[name], seed),
                    )

    def _recipe(self, name: str, backbone: BackboneConfig, seed: int) -> TrainRecipe:
        recipe = small_run(
            depth=self.depth, num_steps=self.num_steps, num_looks=self.num_looks, seed=seed
        )
        return replace(
            recipe,
            name=f"small-run-{name}",
            backbone=backbone,
            optimizer=AdamW(learning_rate=RATE_TIMES_WIDTH / backbone.hidden_dim),
        )


@cache
def matching_backbones(depth: int, match: str) -> dict[str, BackboneConfig]:
    """Every backbone at the cost of the reference of that depth, and the reference as it is.

    `match` is one of `MATCHES`.
    """
    reference = BACKBONES[REFERENCE](depth)
    size = size_row(reference)
    found = matched(
        reference,
        SAMPLE,
        num_clip_tokens=NUM_CLIP_TOKENS,
        flops=size["forward_flops"] if match == "flops" else None,
        parameters=size["parameters"] if match == "parameters" else None,
    )
    return {name: found[name].config for name in found} | {REFERENCE: reference}


def backbones(scale: Scale) -> Backbones:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return Backbones(
                seeds=(0,),
                parameter_seeds=(0,),
                setting=SamplerSetting(num_steps=2, guidance_scale=3.0),
                depth=2,
                num_steps=2,
                num_looks=1,
                num_pictures=48,
                per_task=1,
                reference_per_task=3,
            )
        case "cpu":
            return Backbones(depth=2, num_steps=500, num_pictures=12_000, per_task=14)
        case "gpu":
            return Backbones(
                parameter_seeds=(0, 1, 2),
                world="full",
                depth=6,
                num_steps=10_000,
                num_pictures=100_000,
                per_task=143,
            )
