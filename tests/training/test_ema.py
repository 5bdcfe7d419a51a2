import pytest
import torch
from torch import nn

from rectiflow.base.errors import ConfigError
from rectiflow.training.ema import Ema, EmaConfig


def moving_average(config: EmaConfig, values: list[float]) -> float:
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("constant", torch.ones(1))
    ema = Ema(config.decay_at, model, every=config.every)
    for step, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        ema.update(step)
    assert ema.model.constant is model.constant
    assert not ema.model.weight.requires_grad
    return float(ema.model.weight)


def test_the_first_update_copies_the_weights() -> None:
    assert moving_average(EmaConfig(decay=0.999), [5.0]) == 5.0


def test_later_updates_follow_the_stated_decays() -> None:
    expected = 5.0
    for n, value in enumerate([2.0, 3.0, 4.0], start=1):
        decay = min(0.1, n / (n + 10))
        expected = decay * expected + (1 - decay) * value
    assert moving_average(EmaConfig(decay=0.1), [5.0, 2.0, 3.0, 4.0]) == pytest.approx(expected)


def test_a_long_run_of_one_value_averages_to_it_and_forgets_with_the_set_decay() -> None:
    config = EmaConfig(decay=0.9)
    assert config.decay_at(10_000) == 0.9
    assert moving_average(config, [3.0] * 50) == pytest.approx(3.0)


def test_between_updates_nothing_happens_and_the_decay_is_per_step() -> None:
    config = EmaConfig(decay=0.9, every=3)
    assert config.decay_at(10_000) == pytest.approx(0.9**3)
    assert moving_average(config, [1.0, 2.0, 7.0, 100.0]) == 7.0


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ema.decay is 1.0; give a number from 0 to below 1"):
        EmaConfig(decay=1.0)
    with pytest.raises(ConfigError, match=r"ema.every is 0; give a number of steps >= 1"):
        EmaConfig(every=0)
