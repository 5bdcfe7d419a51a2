"""What a set of drawn pictures is worth: the oracle's verdicts and distances of CLIP features.

Pictures are those of fixed prompts, in order; the reference is as many kinds of real pictures of
the same world. Each distance comes with bootstrap replicates over prompts, whose draws are the same
in every call, so that competitors compare picture by picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, UInt8

from rectiflow.base.seeds import numpy_generator
from rectiflow.evaluation.results import JudgedPicture
from rectiflow.evaluation.shapeworld import judge
from rectiflow.shapeworld.benchmark import BenchmarkPrompt
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import World
from rectiflow.studies.study import Row

#: Real pictures of each task that drawn ones are compared with.
REFERENCE_PER_TASK = 150
NUM_REPLICATES = 40
_REFERENCE_SEED = 1


class Examiner:
    """Scores pictures of `prompts`, one each."""

    def __init__(self, world: World, prompts: Sequence[BenchmarkPrompt], *, scale: int = 1) -> None:
        self.world, self.prompts, self._scale = world, prompts, scale

    def judge(self, images: UInt8[np.ndarray, "n h w 3"]) -> list[JudgedPicture]:
        """The oracle's verdict on each picture."""
        return judge(self.world, self.prompts, [0] * len(self.prompts), images)

    def examine(self, images: UInt8[np.ndarray, "n h w 3"]) -> Row:
        """All metrics of a set of pictures.

        "graded", "correct" (GenEval's verdict) and "strict" are means over tasks in [0, 1], with
        "correct TASK" for each; "clip_score", "frechet" and "cmmd" are of CLIP features, the first
        two with "_replicates". "num_pictures" and "num_reference" count what went in.
        """
        return verdict_row(self.judge(images)) | self._distances(images)


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
