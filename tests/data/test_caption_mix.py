"""The mix: shares as asked for, a function of the key alone, missing variants made up for."""

import pytest
import torch

from rectiflow.base.errors import ConfigError, StoreError
from rectiflow.base.philox import keys_for
from rectiflow.data.caption_mix import (
    caption_weights,
    check_every_sample_has_caption,
    choose_captions,
)

VARIANTS = ("full", "short", "terse")
KEYS = keys_for(0, "test", indices=range(20_000))


def test_shares_are_the_weights() -> None:
    weights = caption_weights({"terse": 3.0, "full": 1.0}, VARIANTS)
    chosen = choose_captions(KEYS, weights, torch.zeros(len(KEYS), 3, dtype=torch.int64))
    share = chosen.bincount(minlength=3) / len(KEYS)
    assert share.tolist() == pytest.approx([0.25, 0.0, 0.75], abs=0.01)


def test_all_weigh_the_same_by_default() -> None:
    weights = caption_weights(None, VARIANTS)
    chosen = choose_captions(KEYS, weights, torch.zeros(len(KEYS), 3, dtype=torch.int64))
    assert (chosen.bincount() / len(KEYS)).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)


def test_missing_variants_leave_the_others_their_proportions() -> None:
    weights = caption_weights({"full": 1.0, "short": 1.0, "terse": 2.0}, VARIANTS)
    text_rows = torch.tensor([[5, -1, 7]]).expand(len(KEYS), 3)
    chosen = choose_captions(KEYS, weights, text_rows)
    share = chosen.bincount(minlength=3) / len(KEYS)
    assert share.tolist() == pytest.approx([1 / 3, 0.0, 2 / 3], abs=0.01)
    only = torch.tensor([[-1, -1, 7]]).expand(len(KEYS), 3)
    assert set(choose_captions(KEYS, weights, only).tolist()) == {2}


def test_choice_depends_on_the_key_alone() -> None:
    weights = caption_weights(None, VARIANTS)
    rows = torch.zeros(len(KEYS), 3, dtype=torch.int64)
    chosen = choose_captions(KEYS, weights, rows)
    order = torch.arange(len(KEYS) - 1, -1, -1)
    assert torch.equal(choose_captions(KEYS[order], weights, rows), chosen[order])
    assert torch.equal(choose_captions(KEYS[3:4], weights, rows[:1]), chosen[3:4])


@pytest.mark.parametrize(
    ("mix", "text"),
    [
        ({"long": 1.0}, "names the variant 'long'; the store has: full, short, terse"),
        ({"full": -1.0}, "the weight -1.0 for 'full'; give 0 or more"),
        ({"full": float("nan")}, "the weight nan for 'full'"),
        ({"full": 0.0}, "caption_mix has no weight above 0"),
        ({}, "caption_mix has no weight above 0"),
    ],
)
def test_impossible_mixes(mix: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        caption_weights(mix, VARIANTS)


def test_samples_without_any_caption_of_the_mix() -> None:
    text_rows = torch.tensor([[0, -1, -1], [0, -1, 1], [-1, 0, -1]])
    weights = caption_weights({"full": 0.0, "terse": 1.0}, VARIANTS)
    check_every_sample_has_caption(weights, text_rows, torch.tensor([1]), VARIANTS)
    with pytest.raises(StoreError, match=r"2 samples of the store have none .* uses \(terse\)"):
        check_every_sample_has_caption(weights, text_rows, torch.arange(3), VARIANTS)
