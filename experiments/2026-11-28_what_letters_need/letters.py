"""Trains the shipped `tiny` further and says how well it tells captions from swapped ones.

rectiflow shapeworld draw --count 8000 --out words \
    --tasks single_object=0,two_object=0,counting=0,colors=0,position=0,color_attr=0
rectiflow encode words --out words_store
OMP_NUM_THREADS=1 python letters.py words_store 300 [--text-positions]
"""

import argparse
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rectiflow.generation.model import Model, load_model
from rectiflow.generation.text_to_image import encode_prompts
from rectiflow.models.baselines.uvit import UViT
from rectiflow.models.conditioning import Conditioning, EmbeddedConditioning
from rectiflow.recipes.small import tiny
from rectiflow.shapeworld.captions import captions
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import SMALL
from rectiflow.training.feed import open_feed
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step

NUM_SCENES = 192
TIME = 0.9
LOOK_EVERY = 150


def other_side(caption: str) -> str | None:
    """The opposite relation."""
    for pair in (("left of", "right of"), ("above", "below")):
        for one, other in (pair, pair[::-1]):
            if one in caption:
                return caption.replace(one, other)
    return None


def other_colours(caption: str) -> str | None:
    """The two objects' colours exchanged."""
    found = re.match(r"a photo of an? (\w+) (\w+) and an? (\w+) (\w+)$", caption)
    return found and f"a photo of a {found[3]} {found[2]} and a {found[1]} {found[4]}"


def back_to_front(caption: str) -> str | None:
    """The word's letters back to front; None where that is the same word."""
    found = re.match(r'the word "(\w+)"(.*)$', caption)
    if found is None or found[1] == found[1][::-1]:
        return None
    return f'the word "{found[1][::-1]}"{found[2]}'


SWAPS: dict[str, Callable[[str], str | None]] = {
    "position": other_side,
    "color_attr": other_colours,
    "typography": back_to_front,
}


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Unseen scenes of a task as latents, with their own captions and with swapped ones."""

    latents: Tensor
    own: Conditioning
    swapped: Conditioning

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, task: str) -> "Looks":
        """The first scenes of the held-out split that the task's swap applies to."""
        pixels: list[np.ndarray] = []
        pairs: list[tuple[str, str]] = []
        index = 0
        while len(pairs) < NUM_SCENES:
            scene = sample_scene(SMALL, split="val", seed=5, index=index, task=task)
            index += 1
            caption = captions(SMALL, scene, seed=0, index=index)["terse"]
            swapped = SWAPS[task](caption)
            if swapped is not None:
                pixels.append(render(SMALL, scene))
                pairs.append((caption, swapped))
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        own, swapped_too = (encode_prompts(model, list(side))[0] for side in zip(*pairs))
        latents = model.autoencoder.encode(images).mean
        return cls(latents=latents, own=own, swapped=swapped_too)

    @torch.no_grad()
    def losses(self, backbone: torch.nn.Module) -> str:
        """Velocity loss at one time: own caption / swapped."""
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(self.latents.shape, generator=generator)
        z_t = (1.0 - TIME) * self.latents + TIME * eps
        t = torch.full((NUM_SCENES,), TIME)
        found = [
            (backbone(z_t, t, told) - (eps - self.latents)).square().mean().item()
            for told in (self.own, self.swapped)
        ]
        return f"{found[0]:.3f} / {found[1]:.3f}"


def add_text_positions() -> None:
    """Let every UViT add sines and cosines of a text token's place to it."""
    embed = UViT.embed

    def with_places(self: UViT, conditioning: Conditioning) -> EmbeddedConditioning:
        embedded = embed(self, conditioning)
        num, dim = embedded.context.shape[1:]
        rates = torch.exp(-math.log(1e4) * torch.arange(dim // 2) / (dim // 2))
        angles = torch.arange(num)[:, None] * rates
        return replace(
            embedded, context=embedded.context + torch.cat([angles.sin(), angles.cos()], dim=1)
        )

    UViT.embed = with_places


def main() -> None:
    """Train with half the recipe's rate, and look every so many steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--text-positions", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.text_positions:
        add_text_positions()
    whole = tiny()
    rate = whole.optimizer.learning_rate / 2
    recipe = replace(
        whole,
        start_from="tiny",
        batch_size=32,
        max_steps=chosen.steps,
        optimizer=replace(
            whole.optimizer,
            learning_rate=rate,
            rest=replace(whole.optimizer.rest, learning_rate=rate),
        ),
        schedule=Trapezoid(warmup_steps=50, decay_fraction=0.0),
        ema=replace(whole.ema, decay=0.98),
    )
    looks = {task: Looks.of(load_model("tiny"), task) for task in SWAPS}
    feed = open_feed(chosen.store, recipe)
    state = TrainState.start(recipe, read_first_weights("tiny"))
    started_s = time.process_time()
    for step in range(chosen.steps + 1):
        if step % LOOK_EVERY == 0:
            found = {task: look.losses(state.ema.model) for task, look in looks.items()}
            print(step, f"{time.process_time() - started_s:.0f} s", found, flush=True)
        if step < chosen.steps:
            train_step(state, feed.batch_at(step), recipe)


if __name__ == "__main__":
    main()
