"""The study of latent channels end to end, and a verdict that follows the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from rectiflow.models.autoencoder.files import load_autoencoder_folder
from rectiflow.shapeworld.scene import TASKS
from rectiflow.studies.autoencoder_channels import autoencoder_channels
from rectiflow.studies.engine import run_study
from rectiflow.studies.results import METRICS_FILE, read_rows
from rectiflow.studies.study import Row


def verdict_of(
    *, psnr: tuple[float, float, float] = (25.0, 26.0, 28.0), graded: dict[tuple[int, int], float]
) -> str:
    """The verdict for graded scores by (depth, channels), 0.3 where nothing else is said.

    Seeds differ by a shared gap, and by as little more as one set of pictures differs from another.
    """
    study = replace(autoencoder_channels("cpu"), seeds=(0, 1))
    rows: list[Row] = [
        {"cell": "a", "kind": "reconstruction", "channels": channels, "diverged": False}
        | {"world": "small", "frechet": 1 / channels, "perceptual": 1 / channels, "ssim": 0.5}
        | {"psnr_db": decibels, "oracle": 0.5, "oracle_low": 0.4, "oracle_high": 0.6}
        | {"num_pictures": 7}
        | {f"oracle {task}": 0.5 for task in TASKS}
        for channels, decibels in zip(study.channels, psnr, strict=True)
    ]
    rows += [
        {"cell": "m", "kind": "generation", "channels": channels, "depth": depth, "seed": seed}
        | {"diverged": False, "frechet": 1.0}
        | {"graded": graded.get((depth, channels), 0.3) + (0.1 + 1e-5 * channels * depth) * seed}
        for channels in study.channels
        for depth in study.depths
        for seed in study.seeds
    ]
    return study.report(rows).verdict


@pytest.mark.slow  # the studies of formulations and scaling go the same way by default
def test_smoke(tmp_path: Path) -> None:
    study = autoencoder_channels("smoke")
    path = run_study(study, tmp_path, command="rectiflow study autoencoder-channels")
    page = (path / "README.md").read_text()
    for text in (
        "**Verdict.**",
        "`full` (table 3)",
        "2.41, 0.85, 0.75, 25.12",
        "frechet_over_depth",
    ):
        assert text in page
    rows = read_rows(path / METRICS_FILE)
    drawn = {(r["channels"], r["depth"]) for r in rows if r["kind"] == "generation"}
    assert drawn == {(4, 1), (4, 2), (8, 1), (8, 2)}
    for channels in study.channels:
        autoencoder = load_autoencoder_folder(tmp_path / "data" / f"autoencoder-{channels}ch")
        assert autoencoder.config.latent_channels == channels
        assert autoencoder.config.latent_scale != 1.0  # measured
        told = {
            r["autoencoder"]
            for r in rows
            if r["kind"] == "reconstruction" and r["channels"] == channels
        }
        assert told == {autoencoder.fingerprint()}


def test_models_differ_in_channels_depth_and_seed_alone() -> None:
    recipes = [cell.recipe for cell in autoencoder_channels("cpu").cells() if cell.recipe]
    first = recipes[0]
    for recipe in recipes:
        own = replace(first.backbone, depth=recipe.backbone.depth)
        assert recipe.backbone == replace(own, in_channels=recipe.backbone.in_channels)
        assert (recipe.max_steps, recipe.shift) == (first.max_steps, first.shift)


@pytest.mark.parametrize(
    ("graded", "words"),
    [
        (
            {(1, 8): 0.5, (3, 16): 0.6},
            "+0.500 [+0.499, +0.501]: depth favours more channels, as in",
        ),
        ({(1, 16): 0.5, (3, 8): 0.6}, "depth favours fewer channels, against the paper"),
        ({}, "2 seeds are not enough to call a difference"),
        ({(1, 4): 0.5}, "At depth 1, 4 channels give the best graded score, 0.550."),
    ],
)
def test_the_verdict_on_generation_follows_the_numbers(
    graded: dict[tuple[int, int], float], words: str
) -> None:
    assert words in verdict_of(graded=graded)


def test_the_verdict_on_reconstruction_names_what_does_not_improve() -> None:
    assert "every step by Fréchet, perceptual, PSNR, not so by SSIM;" in verdict_of(graded={})
    assert "every step by Fréchet, perceptual, not so by SSIM, PSNR;" in verdict_of(
        psnr=(25.0, 24.0, 28.0), graded={}
    )
