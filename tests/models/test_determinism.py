"""Deterministic kernels: asked for in time, and on a CPU nothing changes."""

import os
from collections.abc import Generator

import pytest
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import ConfigError
from rectiflow.cli import main as command_line
from rectiflow.models.determinism import compute_deterministically
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    filled, tried = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn
    was_tried = tried.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    tried.benchmark = was_tried
    os.environ.pop(VARIABLE, None)


def weights_after_two_steps() -> list[torch.Tensor]:
    recipe = tiny_recipe(precision="fp32")
    state, feed = TrainState.start(recipe), FakeFeed()
    for step in range(2):
        train_step(state, feed.batch_at(step), recipe)
    return list(state.backbone.parameters())


def test_on_a_cpu_training_has_the_same_bits_either_way() -> None:
    expected = weights_after_two_steps()
    compute_deterministically()
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ[VARIABLE] == ":4096:8"
    found = weights_after_two_steps()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_it_must_come_before_the_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="used before deterministic kernels were asked for"):
        compute_deterministically()
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(VARIABLE, ":16:8")  # cuBLAS has read it
    compute_deterministically()
    assert torch.are_deterministic_algorithms_enabled()


def test_an_environment_that_asks_for_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, ":0:0")
    with pytest.raises(ConfigError, match=r"is ':0:0', with which cuBLAS adds in any order; unset"):
        compute_deterministically()


@pytest.mark.parametrize(
    "verb",
    [
        ["sample", "nowhere", "a"],
        ["evaluate", "nowhere"],
        ["train", "nothing", "--data", "nowhere", "--out", "run"],
        ["finetune", "nowhere", "--data", "nowhere", "--out", "run"],
    ],
)
def test_the_commands_that_may_use_a_gpu_can_ask_for_it(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main([*verb, "--deterministic"]) == 2
    assert "unknown option" not in capsys.readouterr().err
    assert torch.are_deterministic_algorithms_enabled()
