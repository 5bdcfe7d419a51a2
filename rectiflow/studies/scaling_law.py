"""Power laws of the loss: L = E + Σ A_j·x_j^−α_j in compute, or in parameters and data.

Fitted as in Hoffmann et al.: Huber loss on the residuals of log L, L-BFGS from a grid of starts.
E is a parameter like the others, since most of a flow-matching loss is the target's variance,
which no network removes. Source: arXiv 2203.15556, appendix D.3 (approach 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import huber

from rectiflow.base.seeds import numpy_generator

#: Residuals of log L beyond it count by their size, no longer by their square (as in the source).
HUBER_DELTA = 1e-3
_EXPONENTS = (0.02, 4.0)
_STARTS_OF_FLOOR = (0.3, 0.7, 0.9, 0.98)
_STARTS_OF_EXPONENTS = (0.15, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """L(x) = floor + Σ_j factors[j]·x_j^−exponents[j]."""

    floor: float
    factors: tuple[float, ...]
    exponents: tuple[float, ...]

    def loss(self, scales: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """The loss at n points of k scales, all > 0."""
        terms = np.array(self.factors) * scales ** -np.array(self.exponents)
        return self.floor + terms.sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """A fitted number with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """Value [low, high]."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def fit_law(
    scales: Float[np.ndarray, "n k"],
    losses: Float[np.ndarray, " n"],
    *,
    near: ScalingLaw | None = None,
) -> ScalingLaw:
    """The law of least Huber loss on log residuals over n measurements at k scales.

    Sought from a grid of starts, or from the law `near` it and from its exponents with other
    floors: a floor near zero has no gradient by which it could rise.

    Raises:
        ValueError: scales or losses are not all positive, or there are fewer measurements than
            the 2·k + 1 numbers of the law.
    """
    num, k = scales.shape
    if num < 2 * k + 1:
        raise ValueError(
            f"{num} measurements cannot fix the {2 * k + 1} numbers of a law of {k} scales; "
            "measure more runs or checkpoints"
        )
    if not ((scales > 0).all() and (losses > 0).all()):
        raise ValueError("scales and losses must all be positive: the law is fitted to logarithms")
    # Each scale over its geometric mean: else factor and exponent move as one.
    centre = np.log(scales).mean(axis=0)
    log_scales, log_losses = np.log(scales) - centre, np.log(losses)
    starts = _starts(losses, k)
    if near is not None:
        starts = [_parameters(near, centre), *_starts(losses, k, near.exponents)]
    best = min(
        (_descend(start, log_scales, log_losses) for start in starts),
        key=lambda found: found[0],
    )[1]
    floor, log_factors, exponents = best[0], best[1 : k + 1], best[k + 1 :]
    return ScalingLaw(
        floor=float(np.exp(floor)),
        factors=tuple(np.exp(log_factors + exponents * centre).tolist()),
        exponents=tuple(exponents.tolist()),
    )


def redraws(
    runs: Sequence[str], sizes: Sequence[int], *, least_sizes: int, num: int, seed: int = 0
) -> list[Int[np.ndarray, " m"]]:
    """Places of the measurements in `num` redraws of whole runs, whose checkpoints go together.

    `runs` and `sizes` name the run of each measurement and its size. A redraw with fewer than
    `least_sizes` of them fixes no law and is drawn again.

    Raises:
        ValueError: there are fewer sizes than that.
    """
    size_of = dict(zip(runs, sizes, strict=True))
    names = list(size_of)
    if len(set(sizes)) < least_sizes:
        raise ValueError(
            f"runs of {len(set(sizes))} sizes are too few to be redrawn; give at least "
            f"{least_sizes} sizes"
        )
    places = {name: np.flatnonzero([run == name for run in runs]) for name in names}
    generator = numpy_generator(seed, "scaling law", "redrawn runs")
    found: list[Int[np.ndarray, " m"]] = []
    while len(found) < num:
        drawn = generator.choice(names, size=len(names)).tolist()
        if len({size_of[name] for name in drawn}) >= least_sizes:
            found.append(np.concatenate([places[name] for name in drawn]))
    return found


def quantiles(value: float, redrawn: Sequence[float], *, confidence: float = 0.9) -> Quantiles:
    """A number with its percentile interval over redraws."""
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(redrawn, [tail, 1.0 - tail]).tolist()
    return Quantiles(value=value, low=min(low, value), high=max(high, value))


def frontier(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Places of the measurements that no cheaper or equally cheap one beats, cheapest first."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], losses[i]))
    best, kept = np.inf, list[int]()
    for place in order:
        if losses[place] < best:
            best = losses[place]
            kept.append(place)
    return kept


def _starts(
    losses: Float[np.ndarray, " n"], k: int, near: Sequence[float] | None = None
) -> list[Float[np.ndarray, " p"]]:
    """(log floor, k log factors, k exponents): the floor below the least loss, the rest shared.

    With the exponents `near`, or those of a grid.
    """
    grid = itertools.product(_STARTS_OF_EXPONENTS, repeat=k) if near is None else [near]
    all_exponents = [tuple(exponents) for exponents in grid]
    least, middle = float(losses.min()), float(np.median(losses))
    starts: list[Float[np.ndarray, " p"]] = []
    for share in _STARTS_OF_FLOOR:
        factor = np.log(max(middle - share * least, 1e-3 * middle) / k)
        starts += [
            np.array([np.log(share * least), *[factor] * k, *exponents])
            for exponents in all_exponents
        ]
    return starts


def _parameters(law: ScalingLaw, centre: Float[np.ndarray, " k"]) -> Float[np.ndarray, " p"]:
    """A law as what is sought, its factors for scales that are counted from their centre."""
    exponents = np.array(law.exponents)
    log_factors = np.log(law.factors) - exponents * centre
    return np.array([np.log(law.floor), *log_factors, *exponents])


def _descend(
    start: Float[np.ndarray, " p"],
    log_scales: Float[np.ndarray, "n k"],
    log_losses: Float[np.ndarray, " n"],
) -> tuple[float, Float[np.ndarray, " p"]]:
    """The least objective that is found from a start, and where."""
    k = log_scales.shape[1]
    found = minimize(
        _objective,
        start,
        args=(log_scales, log_losses),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * (k + 1) + [_EXPONENTS] * k,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-8},
    )
    return float(found.fun), found.x


def _objective(
    parameters: Float[np.ndarray, " p"],
    log_scales: Float[np.ndarray, "n k"],
    log_losses: Float[np.ndarray, " n"],
) -> tuple[float, Float[np.ndarray, " p"]]:
    """Huber loss of the log residuals and its gradient, in units of delta².

    In these units the stopping rule does not depend on delta.
    """
    k = log_scales.shape[1]
    log_terms = parameters[1 : k + 1] - parameters[k + 1 :] * log_scales
    logs = np.column_stack([np.full(len(log_scales), parameters[0]), log_terms])
    # Logarithm of the sum, and shares in it. With SciPy's logsumexp and softmax, which do much
    # beside, a fit takes more than twice as long.
    largest = logs.max(axis=1, keepdims=True)
    terms = np.exp(logs - largest)
    sums = terms.sum(axis=1, keepdims=True)
    residuals, shares = (largest + np.log(sums))[:, 0] - log_losses, terms / sums
    slopes = np.clip(residuals, -HUBER_DELTA, HUBER_DELTA)
    by_log_term = shares * slopes[:, None]
    gradient = np.concatenate(
        [by_log_term.sum(axis=0), -(by_log_term[:, 1:] * log_scales).sum(axis=0)]
    )
    unit = HUBER_DELTA**2
    return float(huber(HUBER_DELTA, residuals).sum() / unit), gradient / unit
