"""A LoRA is what it does, and only what a model has a place for."""

from dataclasses import replace

import pytest
import torch
from models.lora.small_loras import CONFIG, EMBEDDER, PROJ, QKV, pair, small_lora

from rectiflow.base.errors import CheckpointError, ConfigError
from rectiflow.models.lora import Lora, LowRank
from rectiflow.models.lora.low_rank import join_shared, stack_pairs
from rectiflow.models.mmdit import MMDiTConfig

D = CONFIG.hidden_dim


def delta(pairs, rows, columns):
    total = torch.zeros(rows, columns)
    for one in pairs:
        total[one.first_row : one.rows.stop] += one.scale * one.up @ one.down
    return total


def test_scale_and_rank():
    one = pair(6, 5, rank=4, alpha=2.0)
    assert (one.rank, one.scale, one.rows) == (4, 0.5, range(6))
    assert small_lora().rank == 2


def test_equal_means_the_same_updates():
    assert small_lora() == small_lora()
    assert hash(small_lora()) == hash(small_lora())
    for other in (small_lora(seed=1), small_lora(alpha=3.0), small_lora(EMBEDDER)):
        assert other != small_lora()
    assert small_lora() != "a LoRA"


def test_stacked_pairs_do_the_same():
    pairs = (pair(4, 5, seed=1), pair(4, 5, rank=3, alpha=3.0, first=8, seed=3))
    down, up = stack_pairs(pairs, 12)
    assert torch.allclose(up @ down, delta(pairs, 12, 5), atol=1e-7)
    assert down.shape[0] == 5


def test_shared_neighbours_are_joined_and_others_are_not():
    whole = pair(12, 5)
    thirds = [whole.take(range(i, i + 4)) for i in (0, 4, 8)]
    (joined,) = join_shared(reversed(thirds))
    assert torch.equal(joined.up, whole.up)
    assert len(join_shared([thirds[0], thirds[2]])) == 2
    assert len(join_shared([thirds[0], replace(thirds[1], alpha=9.0)])) == 2
    assert len(join_shared([thirds[0], replace(thirds[1], down=whole.down + 1)])) == 2


def test_only_some_parts():
    both = Lora(
        config=CONFIG,
        parts=dict(small_lora().parts) | {"clip_l": {"text_projection.weight": (pair(8, 8),)}},
    )
    assert both.only("mmdit") == small_lora()
    assert [part for part, _, _ in both.updates()] == ["mmdit", "clip_l"]
    with pytest.raises(ConfigError, match="has no t5; it changes mmdit, clip_l"):
        both.only("t5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": torch.zeros(6, 3)}, r"up \[6, 3\] · down \[2, 5\] is no low-rank update"),
        ({"up": torch.zeros(6, 0), "down": torch.zeros(0, 5)}, "the rank is at least 1"),
        ({"up": torch.zeros(6, 2).half()}, "torch.float16 and down torch.float32; both must be"),
        ({"alpha": float("nan")}, "alpha=nan must be a finite number"),
        ({"up": torch.full((6, 2), torch.inf)}, "holds NaN or infinity"),
    ],
)
def test_a_pair_that_is_none(change, message):
    one = pair(6, 5)
    with pytest.raises(ConfigError, match=message):
        LowRank(**{"down": one.down, "up": one.up, "alpha": one.alpha} | change)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "without a single pair changes nothing"),
        ({"mmdit": {}}, "without a single pair changes nothing"),
        ({"vae": {PROJ: (pair(D, D),)}}, "no part 'vae'; there are mmdit, clip_l, clip_g, t5"),
        ({"mmdit": {"pos_embed": (pair(D, D),)}}, "has no matrix pos_embed"),
        ({"mmdit": {PROJ.replace("0", "9", 1): (pair(D, D),)}}, "of depth 3 has no matrix joint"),
        ({"mmdit": {PROJ: (pair(D, D + 1),)}}, rf"is \[{D}, {D}\]; a pair for rows 0 to {D} of"),
        ({"mmdit": {PROJ: (pair(D // 3, D),)}}, f"rows come in units of {D}"),
        ({"mmdit": {QKV: (pair(D, D), pair(2 * D, D))}}, "without overlap"),
        ({"mmdit": {QKV: (pair(D, D, first=3 * D),)}}, "does not fit"),
        ({"clip_l": {"a.weight": (pair(4, 4), pair(4, 4, first=4))}}, "takes one pair, of all"),
    ],
)
def test_a_lora_without_a_place(parts, message):
    with pytest.raises(ConfigError, match=message):
        Lora(config=CONFIG, parts=parts)


def test_three_sets_of_weights_have_no_loras():
    config = MMDiTConfig(depth=2, num_clip_tokens=4)
    with pytest.raises(CheckpointError, match="has no released layout"):
        Lora(config=config, parts={"mmdit": {PROJ: (pair(128, 128),)}})
