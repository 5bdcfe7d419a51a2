"""Equal cost: each architecture comes near the target, and the reference is its own match."""

from dataclasses import replace

import pytest
from models.small_backbones import NUM_CLIP

from rectiflow.base.errors import ConfigError
from rectiflow.models.flops import InputSize, forward_flops, num_parameters
from rectiflow.models.matching import matched
from rectiflow.models.mmdit import MMDiTConfig

SMALL = MMDiTConfig(depth=3, context_dim=192, pooled_dim=160, position_side=16, base_side=4)
SMALL_INPUT = InputSize(height=8, width=8, num_text=32)
SD3 = MMDiTConfig(depth=24)
KINDS = {"mmdit", "mmdit3", "dit", "crossdit", "uvit"}


@pytest.mark.parametrize(
    ("like", "size", "tolerance"),
    [
        (SMALL, SMALL_INPUT, 0.05),
        (replace(SMALL, depth=4, use_qk_norm=True), SMALL_INPUT, 0.05),
        (SD3, InputSize(height=32, width=32, num_text=154), 0.02),
        (SD3, InputSize(height=128, width=128, num_text=154), 0.02),
    ],
)
def test_flops_are_matched(like: MMDiTConfig, size: InputSize, tolerance: float) -> None:
    target = forward_flops(like, size)
    found = matched(like, size, num_clip_tokens=77, flops=target)
    assert found.keys() == KINDS
    for match in found.values():
        assert match.flops == forward_flops(match.config, size)
        assert match.ratio == pytest.approx(match.flops / target)
        assert abs(match.ratio - 1) <= tolerance, match
        assert match.config.depth == like.depth
        assert match.config.use_qk_norm == like.use_qk_norm
    assert found["mmdit"].config.hidden_dim == like.hidden_dim
    assert found["mmdit"].ratio == 1.0


def test_parameters_are_matched() -> None:
    target = num_parameters(SMALL)
    found = matched(SMALL, SMALL_INPUT, num_clip_tokens=NUM_CLIP, parameters=target)
    for match in found.values():
        assert match.parameters == num_parameters(match.config)
        assert abs(match.parameters / target - 1) <= 0.05, match
    assert found["mmdit"].config.hidden_dim == SMALL.hidden_dim
    # Weights of their own cost width, shared ones give it.
    widths = {kind: match.config.hidden_dim for kind, match in found.items()}
    assert widths["mmdit3"] < widths["mmdit"] < widths["dit"]


def test_a_match_needs_one_target_within_reach() -> None:
    for targets in ({}, {"flops": 1e9, "parameters": 1e6}):
        with pytest.raises(ConfigError, match="one target: give either flops or parameters"):
            matched(SMALL, SMALL_INPUT, num_clip_tokens=NUM_CLIP, **targets)
    with pytest.raises(ConfigError, match=r"MM-DiT of depth 3 costs .* at its narrowest, the tar"):
        matched(SMALL, SMALL_INPUT, num_clip_tokens=NUM_CLIP, flops=1e5)
