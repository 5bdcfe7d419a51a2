"""What does a finished model lose without some of its text encoders?

Nothing is trained: the same model draws the same prompts from the same noise, with the states of
the encoders that are left out replaced by zeros, as it has seen them in training (`models.text`).
Source: arXiv 2403.03206, section 5.3.3 and figure 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rectiflow.base.errors import UserError
from rectiflow.evaluation.shapeworld import picture_seeds
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.model import Model, load_model
from rectiflow.generation.text_to_image import generate
from rectiflow.shapeworld.benchmark import benchmark_prompts
from rectiflow.shapeworld.world import World, world_by_name
from rectiflow.studies.bench import Bench
from rectiflow.studies.encoders_report import ALL, NO_T5, NONE, T5_ALONE, report_encoders
from rectiflow.studies.scoring import REFERENCE_PER_TASK, Examiner
from rectiflow.studies.study import Cell, Report, Row, Scale, Study

#: Encoders that are kept, by the name under which they are compared.
SUBSETS: dict[str, tuple[str, ...]] = {
    ALL: ("clip_l", "clip_g", "t5"),
    NO_T5: ("clip_l", "clip_g"),
    T5_ALONE: ("t5",),
    "CLIP-L alone": ("clip_l",),
    "CLIP-G alone": ("clip_g",),
    NONE: (),
}


@dataclass(frozen=True, kw_only=True)
class Encoders(Study):
    """One model sampled with each of `SUBSETS`, as its card would sample it.

    `model` is a shipped model's name, or the folder of a run or model of an embedded world.
    """

    name: ClassVar[str] = "encoders"
    question: ClassVar[str] = "What does a model lose without some of its text encoders?"
    source: ClassVar[str] = "figure 9 and the win rates of section 5.3.3"

    model: str = "tiny"
    per_task: int
    num_steps: int = 28
    reference_per_task: int = REFERENCE_PER_TASK

    def cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(name=name.replace(" ", "-"), factors={"encoders": name}) for name in SUBSETS
        )

    def run(self, cell: Cell, bench: Bench, folder: Path) -> list[Row]:
        name = str(cell.factors["encoders"])
        places = LoadSettings(encoders=SUBSETS[name], device=str(bench.device))
        model = load_model(self.model, places)
        world = _world_of(model)
        prompts = benchmark_prompts(world, per_task=self.per_task, held_out=False)
        images = generate(
            model,
            [prompt.prompt for prompt in prompts],
            picture_seeds(prompts, seed=0),
            replace(model.settings, num_steps=self.num_steps),
        )
        examiner = Examiner(world, prompts, reference_per_task=self.reference_per_task)
        rows: list[Row] = [
            {
                "kind": "pictures",
                "digest": model.digest,
                "world": world.name,
                "guidance_scale": model.settings.guidance_scale,
            }
            | examiner.examine(images)
        ]
        rows += [
            {
                "kind": "picture",
                "task": picture.task,
                "prompt": picture.prompt,
                "graded": picture.graded,
                "is_correct": picture.is_correct,
            }
            for picture in examiner.judge(images)
        ]
        return rows

    def report(self, rows: Sequence[Row]) -> Report:
        return report_encoders(self, rows)


def encoders(scale: Scale) -> Encoders:
    """The study's sizes at a scale."""
    match scale:
        case "smoke":
            return Encoders(per_task=1, num_steps=2, reference_per_task=2)
        case "cpu":
            return Encoders(per_task=50)
        case "gpu":
            return Encoders(per_task=400)


def _world_of(model: Model) -> World:
    if model.world is None:
        raise UserError(
            f"the model {model.name} was not trained on an embedded world, whose prompts this "
            "study draws; choose one that was"
        )
    return world_by_name(model.world)
