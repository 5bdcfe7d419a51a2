"""Names of formulations invert, and what is no name is told the grammar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.flow import (
    CosinePath,
    CosMap,
    DDPMLinearPath,
    DensityWeighting,
    EDMPath,
    EpsPrediction,
    ErrorOf,
    Formulation,
    FPrediction,
    LDMLinearPath,
    LogitNormal,
    Mode,
    RectifiedFlowPath,
    Uniform,
    UnitWeighting,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
    parse_formulation,
    rectified_flow,
)

numbers = st.floats(-3, 3, allow_nan=False)
positive = st.floats(0.01, 3)
predictions = st.one_of(
    st.sampled_from([X0Prediction(), EpsPrediction(), VPrediction(), VelocityPrediction()]),
    st.builds(FPrediction, data_std=positive),
)
samplers = st.one_of(
    st.just(Uniform()),
    st.just(CosMap()),
    st.builds(LogitNormal, mean=numbers, std=positive),
    st.builds(Mode, scale=st.floats(*Mode.SCALE_RANGE)),
)
paths = st.one_of(
    st.sampled_from([RectifiedFlowPath(), CosinePath(), LDMLinearPath(), DDPMLinearPath()]),
    st.builds(LDMLinearPath, beta_start=st.floats(1e-5, 1e-3), num_steps=st.integers(2, 4000)),
    st.builds(EDMPath, mean=numbers, std=positive),
)
weightings = st.one_of(
    st.just(UnitWeighting()),
    st.builds(ErrorOf, measured=predictions),
    st.builds(DensityWeighting, density_of=samplers),
)


@given(
    st.builds(
        Formulation, path=paths, prediction=predictions, timesteps=samplers, weighting=weightings
    )
)
def test_every_formulation_is_read_back_from_its_name_and_its_json(formulation: Formulation):
    assert parse_formulation(str(formulation)) == formulation
    assert from_json(Formulation, to_json(formulation)) == formulation


@pytest.mark.parametrize(
    "name",
    [
        "rf",
        "rf/lognorm(0.00,1.00)",
        "rf/mode(1.29)",
        "rf/cosmap",
        "eps/linear",
        "eps/ddpm-linear",
        "v/cos",
        "edm(-1.20,1.20)",
        "edm/rf",
        "edm/cos",
    ],
)
def test_the_papers_names_are_canonical(name: str):
    assert str(parse_formulation(name)) == name


def test_rectified_flow_is_called_as_in_the_paper():
    assert str(rectified_flow()) == "rf/lognorm(0.00,1.00)"
    assert str(rectified_flow(mean=0.5, std=0.6)) == "rf/lognorm(0.50,0.60)"
    assert parse_formulation("rf/lognorm(0,1)") == rectified_flow()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "it has not the form of any"),
        ("ddpm", "it has not the form of any"),
        ("rf/lognorm(0,1)/cosmap", "it has not the form of any"),
        ("rf/normal(0,1)", r"'normal\(0,1\)' is no sampler; choose among uniform, lognorm"),
        ("eps/vp", "'vp' is no path; choose among rf, cos, linear"),
        ("score/cos", "'score' is no prediction; choose among x0, eps"),
        ("rf/lognorm(0)", r"'lognorm\(0\)' has 1 parameters"),
        ("rf/lognorm(a,b)", r"has a parameter that is no number"),
        ("rf/lognorm(0,0)", "lognorm std=0.0 must be positive"),
        ("rf/mode(2)", r"mode scale=2.0 is out of range; give a number from -1 to 2/\(π − 2\)"),
        ("edm(0,-1)", "edm P_s=-1.0 must be positive"),
        ("eps/linear(0.1,0.2)", "give none, or first beta, last beta and a whole number of steps"),
        ("eps/linear(0.1,0.2,10.5)", r"has the parameters \(0.1, 0.2, 10.5\); give none"),
        ("eps/linear(0.1,0.2,inf)", "a whole number of steps"),
        ("v/ddpm-linear(0.2,0.1,10)", "betas run from 0.2 to 0.1"),
        ("rf~loud", "'loud' is no weight"),
    ],
)
def test_what_is_no_name_is_told_the_grammar(name: str, text: str):
    with pytest.raises(ConfigError, match=text) as caught:
        parse_formulation(name)
    assert "mode(scale) with scale from -1 to 1.7519" in str(caught.value)
