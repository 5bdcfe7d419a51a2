"""What an autoencoder loses: its reconstructions of unseen pictures of an embedded world.

The rows of the paper's table (Fréchet distance, perceptual distance, SSIM, PSNR) and, beside them,
how often the oracle still reads a picture right: the ceiling of any model that generates in these
latents. Source: arXiv 2403.03206, section 5.2.1 and table 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rectiflow.data.records import images_from_pixels
from rectiflow.evaluation.bootstrap import Interval, bootstrap_mean, bootstrap_mean_of_strata
from rectiflow.evaluation.clip import EmbeddedClip
from rectiflow.evaluation.features import Distance
from rectiflow.evaluation.frechet_distance import frechet_distance
from rectiflow.evaluation.perceptual_distance import perceptual_distance
from rectiflow.evaluation.pixel_fidelity import psnr_db, structural_similarity
from rectiflow.generation.text_to_image import to_pixels
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.shapeworld.captions import prompt_metadata
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, Scene, sample_scene
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import World

_BATCH_SIZE = 50


@dataclass(frozen=True, kw_only=True)
class AutoencoderScore:
    """Scores of reconstructions of unseen pictures, with all that they depend on.

    `tasks` holds the share of pictures that the oracle still reads right, strictly; `oracle` their
    unweighted mean. PSNR, SSIM and perceptual distance are means over pictures. What needs an image
    tower is None where there was none.
    """

    autoencoder: str
    """Hash of the weights."""
    world: str
    num_pictures: int
    tasks: dict[str, Interval]
    oracle: Interval
    psnr_db: float
    ssim: float
    perceptual: float | None
    frechet: Distance | None


def evaluate_autoencoder(
    autoencoder: Autoencoder,
    world: World,
    clip: EmbeddedClip | None,
    *,
    num_per_task: int,
    seed: int = 0,
) -> AutoencoderScore:
    """Score reconstructions of `num_per_task` unseen pictures of every task.

    The Fréchet distance is between reconstructions and originals of the same pictures, as is usual
    for autoencoders. The kernel distance is not among the scores: its estimate takes the two sets
    to be independent.

    Raises:
        ValueError: num_per_task is below 1.
    """
    if num_per_task < 1:
        raise ValueError(f"num_per_task is {num_per_task}; give at least 1 picture a task")
    verdicts: dict[str, list[list[float]]] = {}
    originals: list[UInt8[np.ndarray, "h w 3"]] = []
    decoded: list[Tensor] = []
    for task in TASKS:
        scenes = [
            sample_scene(world, split="val", seed=seed, index=index, task=task)
            for index in range(num_per_task)
        ]
        pictures = [render(world, scene) for scene in scenes]
        part = reconstruct(autoencoder, images_from_pixels(pictures))
        verdicts[task] = [[float(v)] for v in read_right(world, scenes, to_pixels(part))]
        originals += pictures
        decoded.append(part)
    images, reconstructions = images_from_pixels(originals), torch.cat(decoded)
    perceptual = frechet = None
    if clip is not None:
        perceptual = float(perceptual_distance(reconstructions, images, clip.tower).mean())
        frechet = frechet_distance(
            clip.embed_images(to_pixels(reconstructions)), clip.embed_images(np.stack(originals))
        )
    return AutoencoderScore(
        autoencoder=autoencoder.fingerprint(),
        world=world.name,
        num_pictures=len(images),
        tasks={task: bootstrap_mean(values) for task, values in verdicts.items()},
        oracle=bootstrap_mean_of_strata(verdicts),
        psnr_db=float(psnr_db(reconstructions, images).double().mean()),
        ssim=float(structural_similarity(reconstructions, images).double().mean()),
        perceptual=perceptual,
        frechet=frechet,
    )


@torch.inference_mode()
def reconstruct(
    autoencoder: Autoencoder, images: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Images in [−1, 1] through the mean of their latents and back, clamped to [−1, 1]."""
    return torch.cat(
        [autoencoder.decode(autoencoder.encode(part).mean) for part in images.split(_BATCH_SIZE)]
    ).clamp(-1.0, 1.0)


def read_right(
    world: World, scenes: Sequence[Scene], pictures: UInt8[np.ndarray, "n h w 3"]
) -> list[bool]:
    """For each picture, whether the oracle reads exactly its scene from it.

    Raises:
        ValueError: there are not as many pictures as scenes.
    """
    if len(scenes) != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures came with {len(scenes)} scenes; give a scene for each"
        )
    oracle = Oracle(world)
    return [
        score(world, oracle.read(picture), prompt_metadata(world, scene)).strict
        for picture, scene in zip(pictures, scenes)
    ]
