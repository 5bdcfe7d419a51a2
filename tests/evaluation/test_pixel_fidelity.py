"""PSNR and SSIM against their closed forms, and how both fall as noise grows."""

import pytest
import torch
from torch import Tensor

from rectiflow.data.records import images_from_pixels
from rectiflow.evaluation.pixel_fidelity import (
    MAX_PSNR_DB,
    psnr_db,
    psnr_db_of_error,
    structural_similarity,
)
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import SMALL


@pytest.fixture(scope="module")
def images() -> Tensor:
    scenes = [sample_scene(SMALL, split="val", seed=0, index=i) for i in range(6)]
    return images_from_pixels([render(SMALL, scene) for scene in scenes])


def _noisy(images: Tensor, std: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + std * noise).clamp(-1.0, 1.0)


def test_psnr_of_a_constant_error() -> None:
    """An error of 0.2 on a range of 2 is a tenth: 20 dB; one of 0.02 is 40 dB."""
    images = torch.zeros(2, 3, 16, 16)
    errors = torch.tensor([0.2, -0.02]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr_db(images + errors, images), torch.tensor([20.0, 40.0]))


def test_psnr_of_equal_pictures_is_the_largest(images: Tensor) -> None:
    assert (psnr_db(images, images) == MAX_PSNR_DB).all()
    assert psnr_db_of_error(torch.tensor(0.0)) == MAX_PSNR_DB


@pytest.mark.parity
def test_psnr_equals_torchmetrics(images: Tensor) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    noisy = _noisy(images, 0.1)
    expected = [float(peak_signal_noise_ratio(x, y, data_range=2.0)) for x, y in zip(noisy, images)]
    assert psnr_db(noisy, images).tolist() == pytest.approx(expected, rel=1e-5)


def test_ssim_of_flat_pictures() -> None:
    """Only brightness counts: (2ab + c)/(a² + b² + c) of values on [0, 1], with c = 0.01²."""
    dark, bright = torch.full((1, 3, 32, 32), -0.6), torch.full((1, 3, 32, 32), 0.4)
    a, b, c = 0.2, 0.7, 0.01**2
    expected = (2 * a * b + c) / (a * a + b * b + c)
    assert structural_similarity(dark, bright).tolist() == pytest.approx([expected], rel=1e-4)


def test_ssim_is_one_of_equal_pictures_alone(images: Tensor) -> None:
    similarity = structural_similarity(images, images)
    assert similarity.shape == (6,)
    assert similarity.tolist() == pytest.approx([1.0] * 6, abs=1e-4)
    assert structural_similarity(images.flip(0), images).max() < 0.95


@pytest.mark.parametrize("metric", [psnr_db, structural_similarity])
def test_falls_as_noise_grows(metric, images: Tensor) -> None:
    values = torch.stack([metric(_noisy(images, std), images) for std in (0.0, 0.02, 0.1, 0.5)])
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize("metric", [psnr_db, structural_similarity])
def test_a_number_is_its_own_pictures_alone(metric, images: Tensor) -> None:
    noisy = _noisy(images, 0.1)
    one = torch.cat([metric(noisy[i : i + 1], images[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(one, metric(noisy, images))


@pytest.mark.parametrize("metric", [psnr_db, structural_similarity])
def test_refuses_pictures_without_their_original(metric, images: Tensor) -> None:
    with pytest.raises(ValueError, match="each picture needs its own original, at one size"):
        metric(images[:2], images[:1])
