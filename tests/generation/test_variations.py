"""Variations: nothing at amount 0, the other seed's picture at 1, noise all the way between."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import tiny_model

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.model import Model
from rectiflow.generation.noise import initial_noise, noise_source
from rectiflow.generation.text_to_image import generate
from rectiflow.generation.variations import Variation, turn_noise
from rectiflow.sampling import Ancestral, Euler, Solver

PROMPTS = ["a red circle", "a ring", ""]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.mark.parametrize("solver", [Euler(), Ancestral()])
def test_the_ends_are_the_seeds_own_pictures(model: Model, solver: Solver) -> None:
    settings = replace(model.settings, solver=solver)
    variations = [Variation(seed=7, amount=a) for a in (0.0, 1.0, 0.3)]
    images = generate(model, PROMPTS, [1, 2, 3], settings, variations=variations)
    assert np.array_equal(images[:2], generate(model, PROMPTS[:2], [1, 7], settings))
    assert not np.array_equal(images[2], generate(model, PROMPTS[2:], [3], settings)[0])
    # Alone as among others.
    alone = generate(model, PROMPTS[2:], [3], settings, variations=variations[2:])
    assert np.array_equal(alone[0], images[2])


def test_noise_of_later_steps_turns_as_the_first_does(model: Model) -> None:
    settings = replace(model.settings, height_px=256, width_px=256)
    start, end = (noise_source(model, [seed], settings) for seed in (1, 2))
    turned = noise_source(model, [1], settings, [Variation(seed=2, amount=0.2)])
    whole = angle(start.fresh(3), end.fresh(3))
    assert angle(start.fresh(3), turned.fresh(3)) == pytest.approx(0.2 * whole, abs=0.02)
    # Nothing comes twice.
    for other in (start.start(), start.fresh(0), start.fresh(2)):
        assert angle(start.fresh(3), other) == pytest.approx(math.pi / 2, abs=0.05)


def test_noise_stays_noise_and_turns_evenly(model: Model) -> None:
    settings = replace(model.settings, height_px=256, width_px=256)
    start, end = (initial_noise(model, [seed], settings) for seed in (1, 2))
    whole = angle(start, end)
    for amount in (0.1, 0.5, 0.9):
        turned = initial_noise(model, [1], settings, [Variation(seed=2, amount=amount)])
        assert turned.std().item() == pytest.approx(1.0, abs=0.03)
        assert angle(start, turned) == pytest.approx(amount * whole, abs=0.02)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.acos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item())


def test_on_a_circle_it_is_the_arc() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for amount in (0.25, 0.5):
        at = amount * math.pi / 2
        expected = torch.tensor([[2 * math.cos(at), 2 * math.sin(at)]])
        torch.testing.assert_close(turn_noise(a, b, [amount]), expected)


def test_towards_itself_nothing_turns(model: Model) -> None:
    noise = initial_noise(model, [4], model.settings)
    turned = initial_noise(model, [4], model.settings, [Variation(seed=4, amount=0.5)])
    assert torch.equal(turned, noise)


def test_what_is_no_variation_is_refused(model: Model) -> None:
    for amount in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=f"amount={amount} must be from 0"):
            Variation(seed=1, amount=amount)
    with pytest.raises(UserError, match="1 variations came with 2 seeds; give one for each"):
        generate(model, ["a", "b"], [1, 2], variations=[Variation(seed=1, amount=0.1)])
    with pytest.raises(UserError, match="seed -3 is out of range"):
        generate(model, ["a"], [1], variations=[Variation(seed=-3, amount=0.1)])
