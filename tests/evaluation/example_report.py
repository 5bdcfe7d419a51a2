"""A report of made-up values; `python tests/evaluation/example_report.py FILE` writes the page."""

from __future__ import annotations

import math
import sys

import numpy as np

from rectiflow.evaluation.bootstrap import bootstrap_mean
from rectiflow.evaluation.report import Report, SampleRow, Stage, ValidationPoint, write_report
from rectiflow.evaluation.results import Evaluation, JudgedPicture, Score, SplitScore
from rectiflow.generation.pictures import encode_png
from rectiflow.generation.settings import SamplingSettings
from rectiflow.shapeworld.captions import captions
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import SMALL

LEVELS = tuple(k / 8 for k in range(1, 8))
MOMENTS = (100, 500, 1000, 2000, 3000)


def example_report(*, per_task: int = 8) -> Report:
    rng = np.random.default_rng(0)
    pictures: list[JudgedPicture] = []
    files: dict[str, bytes] = {}
    for task in TASKS:
        for held_out in (False, True)[: 1 if task == "single_object" else 2]:
            for i in range(per_task):
                scene = sample_scene(
                    SMALL, split="val", seed=1, index=i, task=task, held_out=held_out
                )
                name = f"{task}-{held_out}-{i}.png"
                files[name] = encode_png(render(SMALL, scene))
                is_correct = bool(rng.random() < 0.6)
                pictures.append(
                    JudgedPicture(
                        task=task,
                        is_held_out=held_out,
                        prompt=captions(SMALL, scene, seed=1, index=i)["terse"],
                        seed=i,
                        is_correct=is_correct,
                        is_strict=is_correct,
                        graded=1.0 if is_correct else 0.4,
                        reason="" if is_correct else "expected 3 circles, found 2 <b>&",
                        read="a red circle, a blue square",
                        file=name,
                    )
                )
    tasks = {task: _split_score([p for p in pictures if p.task == task]) for task in TASKS}
    return Report(
        title="10 minutes of training, from captions to pictures",
        lede="Made-up values that show how the page looks.",
        evaluation=Evaluation(
            benchmark="shapeworld",
            model="demo/run",
            world="small",
            prompt_form="terse",
            settings=SamplingSettings(),
            per_task=per_task,
            pictures_per_prompt=1,
            seed=0,
            overall=_split_score(pictures),
            tasks=tasks,
            duration_s=61.0,
            pictures=tuple(pictures),
        ),
        pictures=files,
        tiles=(("training", "10 min"), ("steps", "3,000"), ("parameters", "9.1 M")),
        stages=(
            Stage(name="Draw the world", duration_s=41.0, note="25,000 pictures"),
            Stage(name="Train", duration_s=603.0, note="3,000 steps"),
        ),
        losses=tuple((s, 1.2 * math.exp(-s / 500) + 0.3) for s in range(20, 3001, 20)),
        validation=tuple(_validation(step) for step in (0, *MOMENTS)),
        sample_prompts=tuple(p.prompt for p in pictures if not p.is_held_out)[::per_task],
        sample_rows=tuple(
            SampleRow(
                label=f"step {step}", pictures=tuple(files[f"{t}-False-0.png"] for t in TASKS)
            )
            for step in MOMENTS
        ),
        facts=(("backbone", "MM-DiT, depth 4, width 256"), ("seed", "0")),
        recipe={"name": "demo", "seed": 0},
        commands=('rectiflow sample demo/run "a red circle" -n 4',),
        footer="rectiflow, made-up machine",
    )


def _split_score(pictures: list[JudgedPicture]) -> SplitScore:
    def score(held_out: bool) -> Score | None:
        chosen = [float(p.is_correct) for p in pictures if p.is_held_out == held_out]
        if not chosen:
            return None
        interval = bootstrap_mean([[value] for value in chosen], num_resamples=200)
        return Score(
            num_prompts=len(chosen),
            num_pictures=len(chosen),
            lenient=interval,
            strict=interval,
            graded=interval,
        )

    seen = score(False)
    assert seen is not None
    return SplitScore(seen=seen, unseen=score(True))


def _validation(step: int) -> ValidationPoint:
    losses = [(0.9 * math.exp(-step / 900) + 0.2) * (0.7 + (t - 0.6) ** 2) for t in LEVELS]
    return ValidationPoint(
        step=step,
        levels=LEVELS,
        raw=tuple(1.04 * loss for loss in losses),
        ema=tuple(losses),
    )


if __name__ == "__main__":
    write_report(sys.argv[1], example_report())
