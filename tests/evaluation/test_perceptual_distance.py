"""The perceptual distance against its formula, and that it grows with what is wrong."""

import pytest
import torch
from torch import Tensor

from rectiflow.data.records import images_from_pixels
from rectiflow.evaluation import perceptual_distance as module
from rectiflow.evaluation.perceptual_distance import perceptual_distance
from rectiflow.models.shipped import load_image_tower
from rectiflow.models.vision import ImageTower
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import SMALL


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return load_image_tower()


@pytest.fixture(scope="module")
def images() -> Tensor:
    scenes = [sample_scene(SMALL, split="val", seed=0, index=i) for i in range(8)]
    return images_from_pixels([render(SMALL, scene) for scene in scenes])


def _noisy(images: Tensor, std: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + std * noise).clamp(-1.0, 1.0)


def test_is_zero_of_equal_pictures_symmetric_and_bounded(images: Tensor, tower: ImageTower) -> None:
    assert perceptual_distance(images, images, tower).max() == 0.0
    there = perceptual_distance(images, images.flip(0), tower)
    torch.testing.assert_close(perceptual_distance(images.flip(0), images, tower), there)
    assert there.min() > 0.0
    assert there.max() < 4.0


def test_equals_its_formula(images: Tensor, tower: ImageTower) -> None:
    """|a − b|² = 2 − 2·cos of unit vectors, averaged over places and layers."""
    x, y = images[:2], images[2:4]
    cosines = [
        torch.nn.functional.cosine_similarity(a, b, dim=-1).mean(dim=1)
        for a, b in zip(tower.activations(x), tower.activations(y))
    ]
    expected = 2.0 - 2.0 * torch.stack(cosines).mean(dim=0)
    torch.testing.assert_close(perceptual_distance(x, y, tower), expected, rtol=1e-4, atol=1e-5)


def test_grows_with_noise(images: Tensor, tower: ImageTower) -> None:
    values = [
        float(perceptual_distance(_noisy(images, std), images, tower).mean())
        for std in (0.0, 0.02, 0.05, 0.1, 0.3)
    ]
    assert values == sorted(values)
    assert values[1] > 0.0


def test_does_not_depend_on_the_batch(
    images: Tensor, tower: ImageTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = perceptual_distance(images.flip(0), images, tower)
    monkeypatch.setattr(module, "_BATCH_SIZE", 3)
    torch.testing.assert_close(
        perceptual_distance(images.flip(0), images, tower), together, rtol=1e-4, atol=1e-6
    )


def test_refuses_what_does_not_pair(images: Tensor, tower: ImageTower) -> None:
    with pytest.raises(ValueError, match="2 reconstructions came with 1 images"):
        perceptual_distance(images[:2], images[:1], tower)
    with pytest.raises(ValueError, match="the image tower reads 64×64 px"):
        perceptual_distance(images[:, :, :32], images[:, :, :32], tower)
