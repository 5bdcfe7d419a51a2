"""From which time on a task is decided: real latents with noise up to t, finished by a model.

    OMP_NUM_THREADS=1 python where.py MODEL TASK [NUM]

For each strength: the time at which drawing began, and the share that the oracle calls right.
"""

import sys

import numpy as np

from rectiflow import Pipeline
from rectiflow.generation.editing import first_step
from rectiflow.shapeworld.captions import prompt_metadata
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import world_by_name

STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def main(name: str, task: str, num: int = 40) -> None:
    """Print one line a strength."""
    world, pipeline = world_by_name("small"), Pipeline.from_pretrained(name)
    oracle, settings = Oracle(world), pipeline.model.settings
    for strength in STRENGTHS:
        num_right = 0
        for index in range(num):
            scene = sample_scene(world, split="val", seed=5, index=index, task=task)
            asked = prompt_metadata(world, scene, with_word_color=False)
            drawn = pipeline(
                asked["prompt"], image=render(world, scene), strength=strength, seed=index
            )
            num_right += score(world, oracle.read(np.asarray(drawn.images[0])), asked).correct
        place = 1.0 - first_step(settings.num_steps, strength) / settings.num_steps
        t = settings.shift * place / (1.0 + (settings.shift - 1.0) * place)
        print(f"strength {strength}: from t = {t:.3f} on, {num_right / num:.3f} right", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
