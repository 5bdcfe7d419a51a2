"""What a set of drawn pictures is worth: the oracle's verdicts and distances of CLIP features.

Pictures are those of fixed prompts, in order; the reference is as many kinds of real pictures of
the same world. CLIP score and Fréchet distance come with bootstrap replicates, pictures redrawn
within each task, whose draws are the same in every call, so that competitors compare picture by
picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from rectiflow.base.seeds import numpy_generator
from rectiflow.evaluation.clip import EmbeddedClip, load_embedded_clip
from rectiflow.evaluation.clip_score import cosines
from rectiflow.evaluation.features import Features
from rectiflow.evaluation.frechet_distance import FrechetDistance
from rectiflow.evaluation.kernel_distance import KernelDistance
from rectiflow.evaluation.results import JudgedPicture
from rectiflow.evaluation.shapeworld import judge
from rectiflow.shapeworld.benchmark import BenchmarkPrompt
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import World
from rectiflow.studies.study import Row

#: Real pictures of each task that drawn ones are compared with.
REFERENCE_PER_TASK = 150
#: Redraws of the pictures: a second for a hundred pictures, and enough for the ends of a 95 %
#: interval.
NUM_REPLICATES = 200
_REFERENCE_SEED = 1


class Examiner:
    """Scores pictures of `prompts`, one each."""

    def __init__(
        self,
        world: World,
        prompts: Sequence[BenchmarkPrompt],
        *,
        scale: int = 1,
        reference_per_task: int = REFERENCE_PER_TASK,
    ) -> None:
        self.world, self.prompts = world, prompts
        self._scale, self._reference_per_task = scale, reference_per_task

    @property
    def reference(self) -> Features:
        """Features of the real pictures."""
        return _reference(self.world, self._reference_per_task, self._scale)

    def judge(self, images: UInt8[np.ndarray, "n h w 3"]) -> list[JudgedPicture]:
        """The oracle's verdict on each picture."""
        return judge(self.world, self.prompts, [0] * len(self.prompts), images)

    def examine(self, images: UInt8[np.ndarray, "n h w 3"]) -> Row:
        """All metrics of a set of pictures.

        "graded", "correct" (GenEval's verdict) and "strict" are means over tasks in [0, 1], with
        "correct TASK" for each; "clip_score", "frechet" and "cmmd" are of CLIP features, the first
        two with "_replicates": the same of pictures redrawn within each task. "num_pictures" and
        "num_reference" count what went in.
        """
        return verdict_row(self.judge(images)) | self._distances(self._clip.embed_images(images))

    def _distances(self, features: Features) -> Row:
        similar = cosines(features.vectors, self._texts.vectors[self._text_rows])
        redrawn = [
            self._frechet(Features(vectors=features.vectors[rows], backbone=features.backbone))
            for rows in self._redraws
        ]
        return {
            "clip_score": similar.mean().item(),
            "clip_score_replicates": [similar[rows].mean().item() for rows in self._redraws],
            "frechet": self._frechet(features).value,
            "frechet_replicates": [distance.value for distance in redrawn],
            "cmmd": self._kernel(features).value,
            "num_pictures": len(features),
            "num_reference": len(self.reference),
            "clip": features.backbone,
        }

    @property
    def _clip(self) -> EmbeddedClip:
        return _embedded_clip()

    @cached_property
    def _texts(self) -> Features:
        return self._clip.embed_texts(list(self._distinct_prompts))

    @cached_property
    def _distinct_prompts(self) -> dict[str, int]:
        texts = dict.fromkeys(prompt.prompt for prompt in self.prompts)
        return {text: row for row, text in enumerate(texts)}

    @cached_property
    def _text_rows(self) -> list[int]:
        return [self._distinct_prompts[prompt.prompt] for prompt in self.prompts]

    @cached_property
    def _redraws(self) -> list[Int[Tensor, " n"]]:
        return redraws_within_tasks([prompt.task for prompt in self.prompts])

    @cached_property
    def _frechet(self) -> FrechetDistance:
        return FrechetDistance(reference=self.reference)

    @cached_property
    def _kernel(self) -> KernelDistance:
        return KernelDistance(reference=self.reference)


def redraws_within_tasks(tasks: Sequence[str]) -> list[Int[Tensor, " n"]]:
    """Places of the pictures in each of `NUM_REPLICATES` bootstrap redraws, given their tasks.

    Pictures are redrawn within their task, whatever their prompts. Where a task's prompts are all
    distinct that redraws the prompts. Where they come again, all that there are were asked: they
    are no sample, and what they differ by only widens the intervals.
    """
    generator = numpy_generator(0, "study", "redrawn pictures")
    names = np.array(tasks)
    redraws: list[Tensor] = []
    for _ in range(NUM_REPLICATES):
        rows = np.arange(len(names))
        for task in dict.fromkeys(tasks):
            places = np.flatnonzero(names == task)
            rows[places] = generator.choice(places, size=len(places))
        redraws.append(torch.from_numpy(rows))
    return redraws


def verdict_row(judged: Sequence[JudgedPicture]) -> Row:
    """Means over tasks of the oracle's verdicts, and each task's share of correct pictures."""
    by_task: defaultdict[str, list[JudgedPicture]] = defaultdict(list)
    for picture in judged:
        by_task[picture.task].append(picture)

    def overall(values: Sequence[Sequence[float]]) -> float:
        return float(np.mean([np.mean(task) for task in values]))

    tasks = by_task.values()
    return {
        "graded": overall([[p.graded for p in task] for task in tasks]),
        "correct": overall([[float(p.is_correct) for p in task] for task in tasks]),
        "strict": overall([[float(p.is_strict) for p in task] for task in tasks]),
    } | {
        f"correct {task}": float(np.mean([p.is_correct for p in pictures]))
        for task, pictures in by_task.items()
    }


@cache
def _embedded_clip() -> EmbeddedClip:
    return load_embedded_clip()


@cache
def _reference(world: World, per_task: int, scale: int) -> Features:
    images = [
        render(
            world,
            sample_scene(world, split="val", seed=_REFERENCE_SEED, index=index, task=task),
            scale=scale,
        )
        for task in TASKS
        for index in range(per_task)
    ]
    return _embedded_clip().embed_images(np.stack(images))
