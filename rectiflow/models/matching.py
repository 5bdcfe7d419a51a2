"""Backbones of equal cost: every architecture at the same FLOPs, or number of parameters.

arXiv 2403.03206, section 5.2.3, compares architectures without saying how large they were; equal
depth and equal cost is the comparison that can be defended. The width makes up the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from rectiflow.base.errors import ConfigError
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.baselines.crossdit import CrossDiTConfig
from rectiflow.models.baselines.dit import DiTConfig
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.flops import InputSize, forward_flops, num_parameters
from rectiflow.models.frame import BackboneSize
from rectiflow.models.mmdit import MMDiTConfig

#: Sizes of a head that a width may be cut into; 64, as released, where it comes close enough.
HEAD_DIMS = range(48, 82, 2)
RELEASED_HEAD_DIM = 64
#: A ratio of costs this near to 1 is not worth an unusual size of head.
CLOSE = 0.01


@dataclass(frozen=True, kw_only=True)
class Match:
    """A config with its cost; `ratio` is what was matched over what was asked for."""

    config: BackboneConfig
    flops: int
    parameters: int
    ratio: float


def matched(
    like: BackboneSize,
    size: InputSize,
    *,
    num_clip_tokens: int,
    flops: float | None = None,
    parameters: float | None = None,
) -> dict[str, Match]:
    """Every architecture at one cost, with the depth, patches and text widths of `like`.

    Returns MM-DiT with two ("mmdit") and three ("mmdit3") sets of weights, "dit", "crossdit" and
    "uvit". Widths are whole heads, so costs agree nearly: within 5 % from width 192 on, within 2 %
    from 1024 on; `Match.ratio` says how nearly.

    Args:
        like: gives depth, text and latent sizes and whether queries and keys are normed.
        size: the sample that FLOPs are counted for.
        num_clip_tokens: text tokens that are CLIP's, for three sets of weights.
        flops: forward FLOPs of one sample to reach.
        parameters: instead of them, the number of parameters to reach.

    Raises:
        ConfigError: not exactly one of `flops` and `parameters` is given, or an architecture costs
            more at its narrowest.
    """
    if (flops is None) == (parameters is None):
        raise ConfigError("matched needs one target: give either flops or parameters")
    if flops is not None:
        target, cost = flops, lambda config: forward_flops(config, size)
    else:
        assert parameters is not None
        target, cost = parameters, num_parameters
    common = {field.name: getattr(like, field.name) for field in fields(BackboneSize)}
    kinds: dict[str, BackboneConfig] = {
        "mmdit": MMDiTConfig(**common),
        "mmdit3": MMDiTConfig(**common, num_clip_tokens=num_clip_tokens),
        "dit": DiTConfig(**common),
        "crossdit": CrossDiTConfig(**common),
        "uvit": UViTConfig(**common),
    }
    found: dict[str, Match] = {}
    for name, kind in kinds.items():
        config = nearest_width(kind, target, cost)
        found[name] = Match(
            config=config,
            flops=forward_flops(config, size),
            parameters=num_parameters(config),
            ratio=cost(config) / target,
        )
    return found


def nearest_width(
    kind: BackboneConfig, target: float, cost: Callable[[BackboneConfig], float]
) -> BackboneConfig:
    """`kind` at the width whose cost is nearest to `target`.

    Among those that come within `CLOSE` of it the one whose heads are nearest to the released.

    Raises:
        ConfigError: the narrowest costs more than half again as much.
    """

    def at(width: int, head_dim: int) -> BackboneConfig:
        return replace(kind, width=width, head_dim=head_dim)

    # Bisection over whole released heads, then every cut of the widths next to where it ends.
    low, high = 0, 1
    while cost(at(high * RELEASED_HEAD_DIM, RELEASED_HEAD_DIM)) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        is_below = cost(at(middle * RELEASED_HEAD_DIM, RELEASED_HEAD_DIM)) < target
        low, high = (middle, high) if is_below else (low, middle)
    between = range(max(low, 1) * RELEASED_HEAD_DIM - 16, high * RELEASED_HEAD_DIM + 1, 4)
    off_by: dict[tuple[int, int], float] = {}
    for width in between:
        cuts = [dim for dim in HEAD_DIMS if width % dim == 0]
        if cuts:
            dim = min(cuts, key=lambda dim: abs(dim - RELEASED_HEAD_DIM))
            off_by[width, dim] = abs(cost(at(width, dim)) / target - 1.0)
    close = [cut for cut, error in off_by.items() if error <= CLOSE]
    if close:
        return at(*min(close, key=lambda cut: (abs(cut[1] - RELEASED_HEAD_DIM), off_by[cut])))
    best = min(off_by, key=lambda cut: off_by[cut])
    if off_by[best] > 0.5:
        raise ConfigError(
            f"a {kind.title} of depth {kind.depth} costs {cost(at(*best)):.3g} at its narrowest, "
            f"the target is {target:.3g}; give a larger one or fewer blocks"
        )
    return at(*best)
