"""Scores a model at 128 px in squares, wide and tall pictures; prints a JSON row for each.

python score.py MODEL        draws 25 prompts a task
python score.py scenes       takes 25 unseen scenes a task in the place of drawn pictures

A wide picture of 176×96 px is the middle of a canvas of 2:1, which the oracle reads: it is scaled
to the canvas's height, and its left and right columns are repeated to the canvas's width. The
second command says what that, with the crop, leaves of real pictures.
"""

import json
import sys
from dataclasses import replace

import numpy as np
from PIL import Image

from rectiflow.data.pixels import centered_crop, crop_and_resize
from rectiflow.evaluation.shapeworld import judge, picture_seeds, summarize
from rectiflow.generation.model import Model, load_model
from rectiflow.generation.text_to_image import generate
from rectiflow.shapeworld.benchmark import BenchmarkPrompt, benchmark_prompts
from rectiflow.shapeworld.captions import captions, prompt_metadata
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import SMALL, World

#: Width and height in pixels, and the aspect of the canvas that such a picture is the middle of.
SIZES = {"1:1": (128, 128, (1, 1)), "2:1": (176, 96, (2, 1)), "1:2": (96, 176, (1, 2))}
SCALE = 2
PER_TASK = 25

Pictures = tuple[list[BenchmarkPrompt], list[int], np.ndarray]


def on_canvas(world: World, image: np.ndarray) -> np.ndarray:
    """The picture scaled to the canvas's shorter side, its edges repeated along the longer one."""
    width, height = (SCALE * side for side in world.canvas_size_px)
    factor = SCALE * world.canvas_px / min(image.shape[:2])
    size = min(width, round(factor * image.shape[1])), min(height, round(factor * image.shape[0]))
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    missing = (height - size[1], width - size[0])
    padding = [(n // 2, n - n // 2) for n in missing]
    return np.pad(scaled, [*padding, (0, 0)], mode="edge")


def drawn(model: Model, world: World, width_px: int, height_px: int) -> Pictures:
    """The benchmark's prompts, seen combinations, and what the model draws for them."""
    prompts = benchmark_prompts(world, per_task=PER_TASK, held_out=False, seed=0)
    seeds = picture_seeds(prompts, seed=0)
    settings = replace(model.settings, width_px=width_px, height_px=height_px)
    return prompts, seeds, generate(model, [one.prompt for one in prompts], seeds, settings)


def rendered(world: World, width_px: int, height_px: int) -> Pictures:
    """Unseen scenes, cropped and scaled as for training."""
    prompts: list[BenchmarkPrompt] = []
    images: list[np.ndarray] = []
    for task in TASKS:
        for index in range(PER_TASK):
            scene = sample_scene(world, split="val", seed=0, index=index, task=task)
            text = captions(world, scene, seed=0, index=index)["terse"]
            metadata = prompt_metadata(world, scene)
            prompts.append(
                BenchmarkPrompt(task=task, held_out=False, prompt=text, metadata=metadata)
            )
            whole = render(world, scene, scale=SCALE)
            crop = centered_crop(*whole.shape[:2], shape=(height_px, width_px))
            images.append(crop_and_resize(whole, crop, (height_px, width_px)))
    return prompts, [0] * len(prompts), np.stack(images)


def main() -> None:
    """Draw or render, read and score each size."""
    name = sys.argv[1]
    model = None if name == "scenes" else load_model(name)
    for ratio, (width_px, height_px, aspect) in SIZES.items():
        world = replace(SMALL, aspect=aspect)
        prompts, seeds, images = (
            rendered(world, width_px, height_px)
            if model is None
            else drawn(model, world, width_px, height_px)
        )
        judged = judge(world, prompts, seeds, np.stack([on_canvas(world, i) for i in images]))
        overall, tasks = summarize(judged)
        row = {
            "model": name,
            "ratio": ratio,
            "size_px": [width_px, height_px],
            "overall": [round(x, 3) for x in vars(overall.seen.lenient).values()],
            "graded": round(overall.seen.graded.mean, 3),
            "tasks": {task: round(split.seen.lenient.mean, 2) for task, split in tasks.items()},
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
