"""Scenes in memory with pictures, captions and the sentences that are true of each.

What the embedded text encoders and the image tower are trained and judged on: only seen
combinations, from every world given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rectiflow.shapeworld.captions import captions, prompt_metadata
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import Scene, sample_scene
from rectiflow.shapeworld.world import World


@dataclass(frozen=True, kw_only=True)
class CaptionedScenes:
    """Pictures [n h w 3] with captions [n][terse, full] and, per picture, every true sentence."""

    pictures: UInt8[np.ndarray, "n h w 3"]
    captions: tuple[tuple[str, str], ...]
    truths: tuple[frozenset[str], ...]

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, rows: np.ndarray) -> Float[Tensor, "b 3 h w"]:
        """Pictures as networks see them, in [−1, 1]."""
        chosen = torch.from_numpy(self.pictures[rows]).permute(0, 3, 1, 2)
        return chosen.float().div(127.5).sub(1.0)


def draw_scenes(worlds: Sequence[World], *, split: str, seed: int, count: int) -> CaptionedScenes:
    """Draw `count` scenes without held-out combinations, the worlds taking turns."""
    pictures: list[np.ndarray] = []
    texts: list[tuple[str, str]] = []
    truths: list[frozenset[str]] = []
    for index in range(count):
        world = worlds[index % len(worlds)]
        scene = sample_scene(world, split=split, seed=seed, index=index)
        both = captions(world, scene, seed=seed, index=index)
        pictures.append(render(world, scene))
        texts.append((both["terse"], both["full"]))
        truths.append(true_sentences(world, scene) | {both["full"]})
    return CaptionedScenes(pictures=np.stack(pictures), captions=tuple(texts), truths=tuple(truths))


def true_sentences(world: World, scene: Scene) -> frozenset[str]:
    """Every terse caption of any task, and every full one, that is true of a scene.

    A picture of a red circle is also "a photo of a circle": in a contrastive batch that sentence
    must not count as a wrong one.
    """
    if scene.word is not None:
        terse = (
            prompt_metadata(world, scene, with_word_color=shown)["prompt"]
            for shown in (True, False)
        )
        return frozenset(terse)
    same_shape = len({item.shape for item in scene.items}) == 1
    if len(scene.items) == 1:
        tasks = ("single_object", "colors")
    elif same_shape:
        tasks = ("counting",)
    else:
        tasks = ("two_object", "position", "color_attr")
    orders = (scene.items,) if same_shape else (scene.items, scene.items[::-1])
    found: set[str] = set()
    for task in tasks:
        for items in orders:
            both = captions(world, replace(scene, task=task, items=items), seed=0, index=0)
            found.update(both.values())
    return frozenset(found)
