"""The embedded autoencoder: f = 8, 16 channels, trained on pictures of both worlds.

It is trained in two stages. The first has a KL weight that keeps the latents smooth, at the price
of a posterior as noisy as a third of their variance, under which letters of the full world blur.
The second lowers the weight, so that the noise goes and the smoothness stays, and practises
letters. `python -m rectiflow.recipes.parts autoencoder --out DIR` runs both; the result ships in
`rectiflow/models/shipped/autoencoder`. It never sees a held-out combination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.config import to_json
from rectiflow.base.files import atomic_directory
from rectiflow.base.seeds import derive_seed
from rectiflow.data.records import images_from_pixels
from rectiflow.evaluation.autoencoder import evaluate_autoencoder
from rectiflow.evaluation.pixel_fidelity import psnr_db_of_error
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.autoencoder.files import load_autoencoder_folder, save_autoencoder
from rectiflow.models.shipped.card import write_card
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import FULL, SMALL, World
from rectiflow.training.environment import source_commit
from rectiflow.training.parts.autoencoder import (
    AutoencoderLoss,
    AutoencoderTraining,
    train_autoencoder,
)

Log = Callable[[dict[str, float]], None]

#: A small member of the released family: no attention in the middle keeps latents local.
CONFIG = AutoencoderConfig(
    base_channels=16,
    num_norm_groups=8,
    num_blocks=1,
    use_mid_attention=False,
    latent_shift=0.0,
    latent_scale=1.0,
)
#: What a picture shows: a world, and one of its tasks or, with None, any.
Theme = tuple[World, str | None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run on pictures of the themes in turn."""

    training: AutoencoderTraining
    themes: tuple[Theme, ...]


#: Fine detail needs more practice than large shapes: two pictures of the full world for each of
#: the small one.
ANY_THEME: tuple[Theme, ...] = ((SMALL, None), (FULL, None), (FULL, None))
STAGES = (
    Stage(
        training=AutoencoderTraining(
            num_steps=10_000,
            batch_size=16,
            learning_rate=2e-3,
            kl_weight=1e-3,
            max_decoder_noise=0.4,
        ),
        themes=ANY_THEME,
    ),
    Stage(
        training=AutoencoderTraining(
            seed=1,
            num_steps=7000,
            batch_size=16,
            learning_rate=1e-3,
            kl_weight=1e-6,
            max_decoder_noise=0.2,
        ),
        themes=((SMALL, None), (FULL, None), *3 * ((FULL, "typography"),)),
    ),
)
#: Pictures from which the latents' mean and standard deviation are taken.
NUM_STATISTICS = 1024


def themed_images(
    themes: tuple[Theme, ...], indices: range, *, seed: int, split: str
) -> Float[Tensor, "b 3 64 64"]:
    """Pictures in [−1, 1], of the themes in turn."""
    return images_from_pixels(
        [
            render(world, sample_scene(world, split=split, seed=seed, index=index, task=task))
            for index in indices
            for world, task in (themes[index % len(themes)],)
        ]
    )


def training_batches(stage: Stage) -> Iterator[Tensor]:
    """An endless stream of new pictures."""
    size, first = stage.training.batch_size, 0
    while True:
        yield themed_images(
            stage.themes, range(first, first + size), seed=stage.training.seed, split="train"
        )
        first += size


@torch.inference_mode()
def with_measured_normalisation(
    autoencoder: Autoencoder, images: Float[Tensor, "b 3 h w"]
) -> Autoencoder:
    """The same weights with the shift and scale that give latents zero mean and unit std."""
    raw = [autoencoder.encode_raw(chunk) for chunk in images.split(64)]
    mean = torch.cat([part.mean for part in raw])
    variance = torch.cat([part.logvar for part in raw]).exp()
    # A latent is a posterior sample: its variance is the means' variance plus the mean variance.
    std = (mean.var() + variance.mean()).sqrt()
    config = replace(
        autoencoder.config, latent_shift=float(mean.mean()), latent_scale=float(1.0 / std)
    )
    normalised = Autoencoder(config)
    normalised.load_state_dict(autoencoder.state_dict())
    return normalised.eval()


def score_reconstructions(
    autoencoder: Autoencoder, world: World, *, num_per_task: int
) -> dict[str, float]:
    """Share of unseen pictures per task that the oracle still reads right, mean PSNR and SSIM."""
    # Without an image tower: a card should not change when another part is made anew.
    score = evaluate_autoencoder(autoencoder, world, None, num_per_task=num_per_task)
    shares = {task: interval.mean for task, interval in score.tasks.items()}
    return shares | {"psnr_db": score.psnr_db, "ssim": score.ssim}


def trained_autoencoder(
    config: AutoencoderConfig,
    stages: tuple[Stage, ...],
    on_log: Log,
    *,
    start: Path | None = None,
    num_statistics: int = NUM_STATISTICS,
) -> Autoencoder:
    """An autoencoder after all stages, with the shift and scale of its latents measured.

    With `start`, an autoencoder part that the first stage has made, only the later stages run.

    Raises:
        CheckpointError: `start` is not an autoencoder part, or is damaged.
    """
    torch.manual_seed(derive_seed(stages[0].training.seed, "autoencoder", "weights"))
    autoencoder = Autoencoder(config)
    if start is not None:
        autoencoder.load_state_dict(load_autoencoder_folder(start).state_dict())

    def log(step: int, loss: AutoencoderLoss) -> None:
        if (step + 1) % 50 == 0:
            psnr = psnr_db_of_error(loss.squared_error)
            on_log({"step": step + 1, "psnr_db": float(psnr), "kl_per_value": float(loss.kl)})

    for stage in stages[start is not None :]:
        train_autoencoder(autoencoder, training_batches(stage), stage.training, log)
    images = themed_images(
        ANY_THEME, range(num_statistics), seed=stages[0].training.seed + 2, split="train"
    )
    return with_measured_normalisation(autoencoder, images)


def make_autoencoder(
    out: Path,
    on_log: Log,
    *,
    stages: tuple[Stage, ...] = STAGES,
    config: AutoencoderConfig = CONFIG,
    start: Path | None = None,
) -> None:
    """Train and write the part to `out`, which must not exist; `start` as above.

    Raises:
        UserError: `out` is not empty or cannot be written.
        CheckpointError: `start` is not an autoencoder part, or is damaged.
    """
    commit = source_commit() or "unknown"  # of the code that trains, whatever happens meanwhile
    with atomic_directory(out) as folder:
        autoencoder = trained_autoencoder(config, stages, on_log, start=start)
        save_autoencoder(autoencoder, folder, dtype=torch.bfloat16)
        write_autoencoder_card(folder, stages, commit)


def write_autoencoder_card(folder: Path, stages: tuple[Stage, ...], commit: str) -> None:
    """Score the saved weights as they will be loaded, and write the card."""
    autoencoder = load_autoencoder_folder(folder)
    write_card(
        folder,
        recipe={"stages": [to_json(stage.training) for stage in stages]},
        commit=commit,
        data={
            "split": "train",
            "held_out": False,
            "stages": [
                {
                    "themes": [f"{world.name}: {task or 'any'}" for world, task in stage.themes],
                    "num_pictures": stage.training.num_steps * stage.training.batch_size,
                }
                for stage in stages
            ],
        },
        scores={
            world.name: score_reconstructions(autoencoder, world, num_per_task=500)
            for world in (SMALL, FULL)
        },
    )
