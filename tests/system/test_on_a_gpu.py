"""What holds on a CPU, on a GPU: one model's pictures, their bits, and a run that is interrupted.

Asked for by `pytest -m gpu` on a machine that has one.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import tiny_model
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.distributed.world import World
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.text_to_image import generate
from rectiflow.models.determinism import compute_deterministically
from rectiflow.models.precision import usable_device
from rectiflow.studies.engine import run_study
from rectiflow.studies.registry import study
from rectiflow.training.loop import train
from rectiflow.training.tensor_files import SavedTensors

pytestmark = pytest.mark.gpu

PROMPTS = [f"a photo of {number} red circles" for number in ("one", "two", "three", "four", "no")]
SEEDS = range(len(PROMPTS))
#: In levels of 255.
CLOSE = 3


@pytest.fixture(scope="module", autouse=True)
def deterministic_kernels() -> Generator[None]:
    compute_deterministically()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu() -> torch.device:
    return usable_device("cuda")


def test_pictures_are_those_of_the_cpu(gpu: torch.device) -> None:
    images, expected = (
        generate(model, PROMPTS, SEEDS).astype(int)
        for model in (tiny_model().to(gpu), tiny_model())
    )
    assert np.abs(images - expected).max() <= CLOSE


def test_a_picture_has_the_same_bytes_again_and_alone(gpu: torch.device) -> None:
    model = tiny_model().to(gpu)
    together = generate(model, PROMPTS, SEEDS)
    assert np.array_equal(generate(model, PROMPTS, SEEDS), together)
    alone = [generate(model, [PROMPTS[seed]], [seed])[0] for seed in SEEDS]
    assert np.array_equal(np.stack(alone), together)


@pytest.mark.compile
def test_recorded_pictures_are_those_of_the_compiled_model(gpu: torch.device) -> None:
    model = tiny_model().to(gpu)
    compiled, recorded = (
        ModelChanges(is_compiled=True, cuda_graphs=graphs).of(model) for graphs in (False, True)
    )
    expected = generate(compiled, PROMPTS, SEEDS)
    # Recorded, then repeated.
    for _ in range(2):
        assert np.array_equal(generate(recorded, PROMPTS, SEEDS), expected)


def test_an_interrupted_run_ends_with_the_same_bits(gpu: torch.device, tmp_path: Path) -> None:
    recipe = tiny_recipe(max_steps=6, checkpoint_every=2)
    world = World(device=gpu)
    for name, stops in (("whole", ()), ("interrupted", (2, 3))):
        for until in (*stops, None):
            train(recipe, FakeFeed(), tmp_path / name, until=until, progress=False, world=world)
    runs = (tmp_path / "whole", tmp_path / "interrupted")
    for stem in ("weights", "ema", "optimizer"):
        folders = (run / "checkpoints" / "step_00000006" for run in runs)
        whole, interrupted = (SavedTensors.of(folder, stem).read_all() for folder in folders)
        assert all(torch.equal(whole[name], interrupted[name]) for name in whole)


@pytest.mark.parametrize("name", ["qk-norm", "encoders", "scaling"])
def test_a_study_trains_and_draws_there(name: str, gpu: torch.device, tmp_path: Path) -> None:
    path = run_study(study(name, "smoke"), tmp_path, command="-", device=str(gpu))
    assert torch.cuda.get_device_name(gpu) in (path / "README.md").read_text()
