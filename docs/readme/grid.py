"""Draws the README's pictures with the shipped model: six prompts, seeds 0 to 7, none chosen.

The prompts are of combinations that are seen in training.

python docs/readme/grid.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from rectiflow.generation.model import load_model
from rectiflow.generation.text_to_image import generate
from rectiflow.training.hooks import grid

OUT = Path(__file__).parents[1] / "assets" / "grid.png"
PROMPTS = (
    "a photo of a red circle",
    "a photo of a circle and a square",
    "a photo of three crosses",
    "a photo of a ring left of a square",
    "a photo of a yellow triangle and a blue cross",
    'the word "AC" in green',
)
NUM_SEEDS = 8
ZOOM = 2


def main() -> None:
    """Write docs/assets/grid.png."""
    prompts = [prompt for prompt in PROMPTS for _ in range(NUM_SEEDS)]
    images = generate(load_model("tiny"), prompts, [*range(NUM_SEEDS)] * len(PROMPTS))
    zoomed = np.kron(images, np.ones((1, ZOOM, ZOOM, 1), dtype=np.uint8))
    Image.fromarray(grid(zoomed, columns=NUM_SEEDS, gap_px=4)).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
