"""Pictures are scored with redraws that are alike for all and stay within tasks."""

import numpy as np
import pytest
import torch

from rectiflow.shapeworld.benchmark import benchmark_prompts
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import world_by_name
from rectiflow.studies.scoring import NUM_REPLICATES, Examiner, redraws_within_tasks

TASKS = ["counting"] * 3 + ["colors"] * 5 + ["counting"]


def test_pictures_are_redrawn_within_their_task_and_alike_in_every_call() -> None:
    redraws = redraws_within_tasks(TASKS)
    assert len(redraws) == NUM_REPLICATES
    for rows in redraws:
        assert [TASKS[row] for row in rows.tolist()] == TASKS
    again = redraws_within_tasks(TASKS)
    assert all(torch.equal(first, second) for first, second in zip(redraws, again, strict=True))


def test_every_picture_is_redrawn_as_often_as_its_neighbours_and_apart_from_them() -> None:
    # Each picture of n is in a redraw once on average, with Var 1 − 1/n and Cov −1/n: pictures are
    # drawn one by one, never in groups.
    num = 4
    counts = np.stack(
        [np.bincount(rows.numpy(), minlength=num) for rows in redraws_within_tasks(["a"] * num)]
    )
    error = 4.0 / np.sqrt(NUM_REPLICATES)
    assert counts.mean(axis=0) == pytest.approx(np.ones(num), abs=error)
    expected = np.eye(num) - 1.0 / num
    assert np.cov(counts.T) == pytest.approx(expected, abs=1.5 * error)


def test_replicates_are_the_metrics_of_redrawn_pictures() -> None:
    world = world_by_name("small")
    prompts = benchmark_prompts(world, per_task=3, held_out=False)
    images = np.stack(
        [
            render(world, sample_scene(world, split="val", seed=5, index=i, task=prompt.task))
            for i, prompt in enumerate(prompts)
        ]
    )
    examiner = Examiner(world, prompts, reference_per_task=5)
    row = examiner.examine(images)
    assert row == Examiner(world, prompts, reference_per_task=5).examine(images)
    assert (row["num_pictures"], row["num_reference"]) == (len(prompts), 35)
    scores, distances = row["clip_score_replicates"], row["frechet_replicates"]
    assert len(scores) == len(distances) == NUM_REPLICATES
    # A mean is redrawn without bias; a distance of fewer distinct pictures is larger.
    error = 4.0 * np.std(scores) / np.sqrt(NUM_REPLICATES)
    assert np.mean(scores) == pytest.approx(row["clip_score"], abs=error)
    assert np.mean(distances) > row["frechet"]
    # Redrawing a picture a task leaves every mean where it is.
    alone = [
        next(i for i, p in enumerate(prompts) if p.task == task)
        for task in dict.fromkeys(p.task for p in prompts)
    ]
    single = Examiner(world, [prompts[i] for i in alone], reference_per_task=5)
    of_single = single.examine(images[alone])
    assert of_single["clip_score_replicates"] == pytest.approx(
        [of_single["clip_score"]] * NUM_REPLICATES
    )
