import pytest

from rectiflow.base.errors import ConfigError
from rectiflow.training.schedule import Trapezoid, cosine_factor


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    schedule = Trapezoid(warmup_steps=4, decay_fraction=0.5)
    factors = [schedule.factor(step, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:11] == [1.0] * 7
    assert factors[11:] == pytest.approx([k / 10 for k in range(9, 0, -1)])
    assert schedule.factor(20, 20) == 0.0


def test_without_warmup_and_decay_the_rate_is_constant() -> None:
    schedule = Trapezoid(warmup_steps=0, decay_fraction=0.0)
    assert {schedule.factor(step, 5) for step in range(5)} == {1.0}


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is -1; give a number of steps >= 0"):
        Trapezoid(warmup_steps=-1)
    with pytest.raises(ConfigError, match=r"decay_fraction is 1.5; give a share of the run"):
        Trapezoid(decay_fraction=1.5)


def test_the_cosine_rises_to_one_and_falls_to_zero_half_way_at_a_half() -> None:
    factors = [cosine_factor(step, 24, warmup_steps=4) for step in range(25)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[14] == pytest.approx(0.5)
    assert factors[24] == pytest.approx(0.0, abs=1e-12)
    assert factors[4:] == sorted(factors[4:], reverse=True)
