"""Settings refuse what no solver can follow, and read what was written before they grew."""

import pytest

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.generation.settings import SamplingSettings
from rectiflow.sampling import (
    CFGZeroStar,
    DormandPrince,
    DynamicShiftGrid,
    IntervalGuidance,
    NoGuidance,
)

#: As pictures of earlier versions have them.
EARLIER = {"num_steps": 28, "guidance_scale": 4.0, "shift": 1.0, "height_px": 64, "width_px": 64}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_steps", 0, "num_steps=0 must be from 1 to 1000"),
        ("guidance_scale", -1.0, "guidance_scale=-1.0 must be a finite number"),
        ("guidance_scale", float("nan"), "guidance_scale=nan must be a finite number"),
        ("shift", 0.0, "shift=0.0 must be a positive number"),
        ("grid", DynamicShiftGrid(), "shift=6 does not go with a grid that takes its shift"),
        ("guidance", CFGZeroStar(zero_init_steps=28), "leaves none of num_steps=28 steps"),
        ("guidance", NoGuidance(), "guidance_scale=4 does not go with guidance none"),
        ("height_px", 0, "height_px=0 must be positive"),
    ],
)
def test_refused(name: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SamplingSettings(**({"shift": 6.0} | {name: value}))


def test_what_is_usual_is_written_and_read_as_before() -> None:
    assert to_json(SamplingSettings()) == EARLIER
    assert from_json(SamplingSettings, EARLIER) == SamplingSettings()
    assert str(SamplingSettings()) == "64×64 px, 28 steps, guidance 4, shift 1"


def test_what_is_unusual_goes_there_and_back() -> None:
    settings = SamplingSettings(
        solver=DormandPrince(tolerance=0.01),
        grid=DynamicShiftGrid(),
        guidance=IntervalGuidance(low=0.25, inner=CFGZeroStar()),
    )
    data = to_json(settings)
    assert data["solver"] == {"kind": "DormandPrince", "tolerance": 0.01}
    assert data["guidance"]["inner"]["kind"] == "CFGZeroStar"
    assert from_json(SamplingSettings, data) == settings
    assert str(settings).endswith(
        ", solver dormand-prince:tolerance=0.01, grid dynamic, guidance zero-star+interval:low=0.25"
    )
