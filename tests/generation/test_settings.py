"""Settings refuse what no solver can follow."""

import pytest

from rectiflow.base.errors import ConfigError
from rectiflow.generation.settings import SamplingSettings


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_steps", 0, "num_steps=0 must be from 1 to 1000"),
        ("guidance_scale", -1.0, "guidance_scale=-1.0 must be a finite number"),
        ("guidance_scale", float("nan"), "guidance_scale=nan must be a finite number"),
        ("shift", 0.0, "shift=0.0 must be a positive number"),
        ("height_px", 0, "height_px=0 must be positive"),
    ],
)
def test_refused(name: str, value: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SamplingSettings(**{name: value})
