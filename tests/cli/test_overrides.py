"""Recipe fields as options: values arrive typed, mistakes come as one line."""

from dataclasses import dataclass, field

import pytest

from rectiflow.base.errors import ConfigError
from rectiflow.cli.overrides import apply_overrides, describe_fields
from rectiflow.sampling import (
    CFGZeroStar,
    Heun,
    IntervalGuidance,
    ReleasedGrid,
    SamplingDefaults,
)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Muon:
    learning_rate: float = 0.02
    momentum: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Recipe:
    optimizer: AdamW | Muon = field(default_factory=AdamW)
    max_steps: int = 10
    prompts: tuple[str, ...] = ()
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    mix: dict[str, float] = field(default_factory=lambda: {"terse": 0.5})


def apply(*options: str, recipe: Recipe | None = None) -> Recipe:
    return apply_overrides(recipe or Recipe(), options, prog="rectiflow train demo")


def test_values_take_the_place_of_the_recipes_own() -> None:
    assert apply() == Recipe()
    assert apply("--optimizer.learning-rate", "3e-4", "--max-steps", "5") == Recipe(
        optimizer=AdamW(learning_rate=3e-4), max_steps=5
    )
    assert apply("--optimizer.betas", "0.8", "0.9", "--mix.terse", "1") == Recipe(
        optimizer=AdamW(betas=(0.8, 0.9)), mix={"terse": 1.0}
    )
    assert apply("--prompts", "a red circle", "a cross").prompts == ("a red circle", "a cross")


def test_the_recipes_own_component_is_the_one_that_changes() -> None:
    recipe = Recipe(optimizer=Muon())
    changed = apply("--optimizer.momentum", "0.5", recipe=recipe)
    assert changed.optimizer == Muon(momentum=0.5)


def test_solver_grid_and_guidance_are_told_by_name() -> None:
    words = ("--sampling.solver", "heun", "--sampling.guidance", "zero-star+interval:low=0.2")
    sampling = apply(*words, "--sampling.grid", "released").sampling
    assert (sampling.solver, sampling.grid) == (Heun(), ReleasedGrid())
    assert sampling.guidance == IntervalGuidance(low=0.2, inner=CFGZeroStar())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sampling.solver", "rk5"), "there is no solver 'rk5'; there are euler"),
        (("--sampling.guidance", "none"), "guidance_scale=3 does not go with guidance none"),
        (("--optimizer.learnin-rate", "1"), "--optimizer.learnin-rate.*; nearest: --optimizer.l"),
        (("--optimizer.momentum", "1"), "[Uu]nrecognized.*--optimizer.momentum"),
        (("--max-steps", "many"), "--max-steps: .*'many'"),
        (("--max-steps",), "--max-steps"),
        (("more",), "[Uu]nrecognized.* more"),
    ],
)
def test_mistakes_come_as_one_line(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        apply(*options)
    text = str(caught.value)
    assert "\n" not in text
    assert not set(text) & set("│╭╮╰╯─")


def test_fields_are_described_with_the_recipes_values() -> None:
    page = describe_fields(Recipe(max_steps=77), prog="rectiflow train demo")
    assert page.startswith("usage: rectiflow train demo")
    assert "--optimizer.learning-rate" in page
    assert "--sampling.solver NAME" in page
    assert "77" in page
