"""Every solver, grid and guidance has a name that parses back; a wrong name is told the others."""

import pytest

from rectiflow.base.errors import ConfigError
from rectiflow.sampling import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    CFGZeroStar,
    ClassifierFreeGuidance,
    DormandPrince,
    DPMSolverPP2M,
    IntervalGuidance,
    RescaledGuidance,
    SkipLayerGuidance,
    parse_grid,
    parse_guidance,
    parse_solver,
    spell,
)
from rectiflow.sampling.names import GRIDS, GUIDANCES, SOLVERS


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_have_names(name: str) -> None:
    assert spell(parse_solver(name)) == name


@pytest.mark.parametrize("name", GRIDS)
def test_grids_have_names(name: str) -> None:
    assert spell(parse_grid(name)) == name


@pytest.mark.parametrize(
    ("text", "guidance"),
    [
        ("cfg", ClassifierFreeGuidance()),
        ("interval:low=0.25", IntervalGuidance(low=0.25)),
        (
            "apg:eta=0.5,norm_threshold=10.0",
            AdaptiveProjectedGuidance(eta=0.5, norm_threshold=10.0),
        ),
        ("auto:weaker=runs/small", AutoGuidance(weaker="runs/small")),
        ("auto:weaker=runs/a+b", AutoGuidance(weaker="runs/a+b")),
        ("auto:weaker=runs/cfg+apgs,b=1,", AutoGuidance(weaker="runs/cfg+apgs,b=1,")),
        ("auto:weaker=a,b+rescale", RescaledGuidance(inner=AutoGuidance(weaker="a,b"))),
        ("skip-layers:layers=7,8,9,low=0.5", SkipLayerGuidance(layers=(7, 8, 9), low=0.5)),
        (
            "zero-star:zero_init_steps=2+rescale+interval:high=0.8",
            IntervalGuidance(
                high=0.8, inner=RescaledGuidance(inner=CFGZeroStar(zero_init_steps=2))
            ),
        ),
    ],
)
def test_guidances_have_names(text: str, guidance: object) -> None:
    assert parse_guidance(text) == guidance
    assert spell(guidance) == text


def test_values_of_solvers() -> None:
    assert parse_solver("dormand-prince:tolerance=1e-5") == DormandPrince(tolerance=1e-5)
    assert parse_solver("dpm++2m") == DPMSolverPP2M()


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (
            parse_solver,
            "hein",
            "there is no solver 'hein'; there are euler, heun, midpoint, rk4, dpm",
        ),
        (
            parse_grid,
            "",
            "there is no grid ''; there are linear, training-times, released, dynamic",
        ),
        (
            parse_guidance,
            "cfg2",
            "there is no guidance 'cfg2'; there are none, cfg, zero-star, apg",
        ),
        (parse_solver, "heun:order=3", "solver heun has no 'order'; it takes nothing"),
        (parse_solver, "heun:3", "solver 'heun:3': '3' is no key=value"),
        (
            parse_guidance,
            "interval:inner=cfg",
            "guidance interval has no 'inner'; it takes low, high",
        ),
        (parse_guidance, "cfg+rescal", "there is no guidance 'cfg\\+rescal'; there are none, cfg"),
        (parse_guidance, "auto:weakr=a,b", "guidance auto has no 'weakr'; it takes weaker"),
        (parse_guidance, "interval:low=half", "interval:low=half is not a number"),
        (parse_guidance, "interval:low=0.1,0.2", "low=0.1,0.2 must be a number, not a list"),
        (parse_guidance, "skip-layers", "skip-layers needs layers: skip-layers:layers=…"),
        (parse_guidance, "skip-layers:layers=1,x", "layers=1,x is not a whole number"),
        (parse_guidance, "interval+apg", "'apg' cannot stand around .*; interval and rescale can"),
    ],
)
def test_what_is_not_there_is_told(parse, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(text)


def test_every_guidance_is_named() -> None:
    assert len(set(GUIDANCES.values())) == len(GUIDANCES) == 9
