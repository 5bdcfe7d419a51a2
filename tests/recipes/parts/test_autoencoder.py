"""The autoencoder's recipe at a small size, its files, and what the shipped one must reach."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rectiflow.base.errors import CheckpointError
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.autoencoder.files import load_autoencoder_folder, save_autoencoder
from rectiflow.models.shipped import load_autoencoder
from rectiflow.recipes.parts.autoencoder import (
    ANY_THEME,
    CONFIG,
    Stage,
    score_reconstructions,
    themed_images,
    training_batches,
    with_measured_normalisation,
)
from rectiflow.shapeworld.world import FULL, SMALL, World
from rectiflow.training.parts.autoencoder import (
    AutoencoderLoss,
    AutoencoderTraining,
    train_autoencoder,
)

TINY = replace(CONFIG, base_channels=8, num_norm_groups=4)
TRAINING = AutoencoderTraining(num_steps=12, batch_size=4, warmup_steps=2, learning_rate=5e-3)
STAGE = Stage(training=TRAINING, themes=ANY_THEME)


def trained() -> tuple[Autoencoder, list[AutoencoderLoss]]:
    torch.manual_seed(0)
    autoencoder, losses = Autoencoder(TINY), list[AutoencoderLoss]()
    train_autoencoder(
        autoencoder, training_batches(STAGE), TRAINING, lambda _, loss: losses.append(loss)
    )
    return autoencoder, losses


def test_training_lowers_the_error_and_repeats_bit_for_bit() -> None:
    (first, losses), (second, _) = trained(), trained()
    assert losses[-1].absolute_error < losses[0].absolute_error
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_measured_normalisation_gives_zero_mean_and_unit_std() -> None:
    images = themed_images(ANY_THEME, range(256), seed=4, split="train")
    autoencoder = with_measured_normalisation(Autoencoder(TINY), images)
    with torch.no_grad():
        latents = autoencoder.encode(themed_images(ANY_THEME, range(256), seed=5, split="train"))
    std = (latents.mean.var() + latents.logvar.exp().mean()).sqrt().item()
    assert latents.mean.mean().item() == pytest.approx(0.0, abs=0.02)
    assert std == pytest.approx(1.0, abs=0.02)


def test_a_folder_round_trips_and_a_cut_file_is_refused(tmp_path: Path) -> None:
    autoencoder = Autoencoder(TINY)
    save_autoencoder(autoencoder, tmp_path, dtype=torch.float32)
    assert load_autoencoder_folder(tmp_path).fingerprint() == autoencoder.fingerprint()
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot load the autoencoder's weights from"):
        load_autoencoder_folder(tmp_path)


@pytest.mark.parametrize("world", [SMALL, FULL])
def test_shipped_autoencoder_passes_its_gates(world: World) -> None:
    scores = score_reconstructions(load_autoencoder(), world, num_per_task=30)
    assert scores.pop("psnr_db") >= 30.0
    assert scores.pop("ssim") >= 0.9
    assert scores.pop("typography") >= 0.97
    assert sum(scores.values()) / len(scores) >= 0.99
