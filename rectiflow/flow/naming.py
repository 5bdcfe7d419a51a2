"""From a formulation's name to the formulation: the paper's names, and the grammar behind them.

Inverts `str(formulation)` on everything that `flow` can express.
Source: arXiv 2403.03206, section 3 and tables 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from rectiflow.base.errors import ConfigError
from rectiflow.flow.beta_paths import BetaPath, DDPMLinearPath, LDMLinearPath
from rectiflow.flow.formulation import SHORT_BEGINNINGS, SHORT_NAMES, Formulation
from rectiflow.flow.path import CosinePath, EDMPath, ProbabilityPath, RectifiedFlowPath
from rectiflow.flow.prediction import (
    EpsPrediction,
    FPrediction,
    Prediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from rectiflow.flow.timesteps import CosMap, LogitNormal, Mode, TimestepSampler, Uniform
from rectiflow.flow.weighting import DensityWeighting, ErrorOf, UnitWeighting, Weighting

T = TypeVar("T")

GRAMMAR = f"""\
  rf, rf/SAMPLER                        rf/lognorm(0.00,1.00)
  eps/PATH, v/PATH                      eps/linear, v/cos
  edm(P_m,P_s), edm/rf, edm/cos         edm(-1.20,1.20)
  PREDICTION/PATH[/SAMPLER][~WEIGHT]    x0/cos/mode(1.29)~eps
  SAMPLER: uniform, lognorm(mean,std) with std > 0, cosmap,
           mode(scale) with scale from {Mode.SCALE_RANGE[0]:g} to {Mode.SCALE_RANGE[1]:.4f}
  PATH: rf, cos, edm(P_m,P_s) with P_s > 0,
        linear, ddpm-linear, either with (first beta,last beta,steps) where they differ
  PREDICTION: x0, eps, v, velocity, F
  WEIGHT: a PREDICTION whose error counts, or a SAMPLER whose density does"""

_PATHS: Mapping[str, Callable[..., ProbabilityPath]] = {
    "rf": RectifiedFlowPath,
    "cos": CosinePath,
    "linear": lambda *ends: _beta_path(LDMLinearPath, *ends),
    "ddpm-linear": lambda *ends: _beta_path(DDPMLinearPath, *ends),
    "edm": lambda mean, std: EDMPath(mean=mean, std=std),
}
_PREDICTIONS: Mapping[str, Callable[..., Prediction]] = {
    "x0": X0Prediction,
    "eps": EpsPrediction,
    "v": VPrediction,
    "velocity": VelocityPrediction,
    "F": lambda data_std=FPrediction.data_std: FPrediction(data_std=data_std),
}
_SAMPLERS: Mapping[str, Callable[..., TimestepSampler]] = {
    "uniform": Uniform,
    "lognorm": lambda mean, std: LogitNormal(mean=mean, std=std),
    "mode": lambda scale: Mode(scale=scale),
    "cosmap": CosMap,
}
_COMPONENT = re.compile(r"([A-Za-z][\w-]*)(?:\(([^()]*)\))?")


def parse_formulation(name: str) -> Formulation:
    """The formulation of a name.

    Raises:
        ConfigError: the name does not follow the grammar, or a parameter lies outside its range;
            the text shows both.
    """
    try:
        return _parse(name)
    except ConfigError as error:
        raise ConfigError(f"formulation {name!r}: {error}. Names are:\n{GRAMMAR}") from error


def _parse(name: str) -> Formulation:
    body, tilde, weight = _spell_out(name).partition("~")
    parts = body.split("/")
    if len(parts) not in (2, 3):
        raise ConfigError("it has not the form of any")
    return Formulation(
        prediction=_component("prediction", parts[0], _PREDICTIONS),
        path=_component("path", parts[1], _PATHS),
        timesteps=_component("sampler", parts[2], _SAMPLERS) if parts[2:] else Uniform(),
        weighting=_weighting(weight) if tilde else UnitWeighting(),
    )


def _spell_out(name: str) -> str:
    for long, short in SHORT_NAMES.items():
        if name == short:
            return long
    for long, short in SHORT_BEGINNINGS.items():
        if name.startswith(short):
            return long + name.removeprefix(short)
    return name


def _weighting(text: str) -> Weighting:
    if text.partition("(")[0] in _PREDICTIONS:
        return ErrorOf(measured=_component("prediction", text, _PREDICTIONS))
    return DensityWeighting(density_of=_component("weight", text, _SAMPLERS))


def _component(kind: str, text: str, known: Mapping[str, Callable[..., T]]) -> T:
    """The value of "name" or "name(number,…)"."""
    match = _COMPONENT.fullmatch(text)
    if match is None or match[1] not in known:
        raise ConfigError(f"{text!r} is no {kind}; choose among {', '.join(known)}")
    try:
        numbers = [float(number) for number in match[2].split(",")] if match[2] else []
    except ValueError:
        raise ConfigError(f"{text!r} has a parameter that is no number") from None
    try:
        return known[match[1]](*numbers)
    except TypeError:
        raise ConfigError(f"{text!r} has {len(numbers)} parameters, which does not fit") from None


def _beta_path(kind: Callable[..., BetaPath], *rates: float) -> BetaPath:
    if not rates:
        return kind()
    if len(rates) != 3 or not rates[2].is_integer():
        raise ConfigError(
            f"the path has the parameters {rates}; give none, or first beta, last beta and a "
            "whole number of steps"
        )
    beta_start, beta_end, num_steps = rates
    return kind(beta_start=beta_start, beta_end=beta_end, num_steps=int(num_steps))
