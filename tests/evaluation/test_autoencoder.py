"""Scores of autoencoders that lose nothing, something, and everything."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from rectiflow.base.config import from_json, to_json
from rectiflow.evaluation.autoencoder import (
    AutoencoderScore,
    evaluate_autoencoder,
    read_right,
    reconstruct,
)
from rectiflow.evaluation.clip import EmbeddedClip, load_embedded_clip
from rectiflow.models.autoencoder import Autoencoder, LatentDistribution
from rectiflow.models.shipped import load_autoencoder
from rectiflow.recipes.parts.autoencoder import CONFIG
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import SMALL


class Noisy(Autoencoder):
    """Latents are the pictures, decoding adds noise of one size: what is lost is known."""

    def __init__(self, std: float) -> None:
        super().__init__(replace(CONFIG, base_channels=8, num_norm_groups=4))
        self.std = std

    def encode(self, images: torch.Tensor) -> LatentDistribution:
        return LatentDistribution(mean=images, logvar=torch.zeros_like(images))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return latents + self.std * noise


@pytest.fixture(scope="module")
def clip() -> EmbeddedClip:
    return load_embedded_clip()


def test_every_score_is_best_where_nothing_is_lost(clip: EmbeddedClip) -> None:
    score = evaluate_autoencoder(Noisy(0.0), SMALL, clip, num_per_task=4)
    assert score.num_pictures == 4 * len(TASKS)
    assert score.oracle.mean == 1.0
    assert score.oracle.low < 1.0
    assert list(score.tasks) == list(TASKS)
    assert score.psnr_db > 100.0
    assert score.ssim == pytest.approx(1.0, abs=1e-4)
    assert score.perceptual == pytest.approx(0.0, abs=1e-6)
    assert score.frechet is not None
    assert score.frechet.value == pytest.approx(0.0, abs=1e-4)
    assert score.frechet.num_samples == score.frechet.num_reference == score.num_pictures


def test_every_score_worsens_with_the_loss(clip: EmbeddedClip) -> None:
    scores = [
        evaluate_autoencoder(Noisy(std), SMALL, clip, num_per_task=4) for std in (0.02, 0.1, 1.0)
    ]
    for better, worse in pairwise(scores):
        assert better.psnr_db > worse.psnr_db
        assert better.ssim > worse.ssim
        assert better.perceptual < worse.perceptual
        assert better.frechet.value < worse.frechet.value
        assert better.oracle.mean >= worse.oracle.mean
    assert scores[0].oracle.mean == 1.0
    assert scores[-1].oracle.mean < 0.5


def test_scores_repeat_and_round_trip_as_json(clip: EmbeddedClip) -> None:
    autoencoder = load_autoencoder()
    first, second = (
        evaluate_autoencoder(autoencoder, SMALL, clip, num_per_task=2) for _ in range(2)
    )
    assert first == second
    assert from_json(AutoencoderScore, to_json(first)) == first
    assert first.autoencoder == autoencoder.fingerprint()


def test_without_a_tower_its_scores_are_missing() -> None:
    score = evaluate_autoencoder(Noisy(0.1), SMALL, None, num_per_task=1)
    assert (score.perceptual, score.frechet) == (None, None)


def test_reconstructions_do_not_depend_on_the_batch_and_stay_in_range() -> None:
    autoencoder = load_autoencoder()
    images = torch.rand(53, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = reconstruct(autoencoder, images)
    assert together.abs().max() <= 1.0
    torch.testing.assert_close(reconstruct(autoencoder, images[50:]), together[50:])


def test_a_picture_of_another_scene_is_not_read_right() -> None:
    scenes = [
        sample_scene(SMALL, split="val", seed=0, index=i, task="two_object") for i in range(6)
    ]
    pictures = np.stack([render(SMALL, scene) for scene in scenes])
    assert read_right(SMALL, scenes, pictures) == [True] * 6
    assert sum(read_right(SMALL, scenes, np.roll(pictures, 1, axis=0))) < 3
    with pytest.raises(ValueError, match="6 pictures came with 2 scenes"):
        read_right(SMALL, scenes[:2], pictures)


def test_refuses_no_pictures() -> None:
    with pytest.raises(ValueError, match="num_per_task is 0"):
        evaluate_autoencoder(Noisy(0.0), SMALL, None, num_per_task=0)
