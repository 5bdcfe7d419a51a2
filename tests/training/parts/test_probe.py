import pytest
import torch

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.world import FULL
from rectiflow.training.parts.probe import ABSENT, caption_facts, fit_probe


def _said(caption: str) -> dict[str, str]:
    return {k: v for k, v in caption_facts(FULL, caption).items() if v != ABSENT}


def test_facts_follow_the_order_of_the_sentence():
    assert _said("a photo of a red circle and a blue square") == {
        "count": "1",
        "shape_1": "circle",
        "color_1": "red",
        "shape_2": "square",
        "color_2": "blue",
    }
    assert _said("a green star above a pink heart") == {
        "count": "1",
        "relation": "above",
        "shape_1": "star",
        "color_1": "green",
        "shape_2": "heart",
        "color_2": "pink",
    }
    assert _said("two red circles top left and bottom right") == {
        "count": "2",
        "shape_1": "circle",
        "color_1": "red",
        "place_1": "top left",
    }
    assert _said('the word "CAT" in red top') == {
        "color_1": "red",
        "place_1": "top",
        "letter_1": "C",
        "letter_2": "A",
        "letter_3": "T",
    }
    with pytest.raises(UserError, match="has no sentence 'a dog'"):
        caption_facts(FULL, "a dog")


def test_a_probe_finds_linear_facts_and_not_others():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 6, generator=generator)
    linear = features @ torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 1.0]) > 0.0
    hidden = torch.rand(600, generator=generator) > 0.5
    facts = [
        {"shape_1": "a" if x else "b", "color_1": "c" if y else "d"}
        for x, y in zip(linear, hidden, strict=True)
    ]
    probe = fit_probe(features[:400], facts[:400], seed=0, max_steps=300)
    accuracy = probe.accuracy(features[400:], facts[400:])
    assert accuracy["shape"] > 0.9
    assert 0.35 < accuracy["color"] < 0.65


def test_what_a_caption_does_not_say_does_not_count():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    facts = [{"letter_1": ABSENT if row < 49 else "A"} for row in range(50)]
    accuracy = fit_probe(features, facts, seed=0, max_steps=0).accuracy(features, facts)
    # Untrained, it always answers the first option, ABSENT, and is judged on the one "A".
    assert accuracy == {"letter": 0.0}
