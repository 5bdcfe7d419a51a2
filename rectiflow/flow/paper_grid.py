"""The 61 formulations that the paper ranks (arXiv 2403.03206, section 3 and table 1).

The paper gives the ranges and counts; the values in between are spaced evenly, rounded to the two
decimals that it prints.
"""

from __future__ import annotations

from rectiflow.flow.formulation import Formulation
from rectiflow.flow.naming import parse_formulation


def _even(low: float, high: float, count: int) -> list[float]:
    return [round(low + (high - low) * i / (count - 1), 2) for i in range(count)]


def paper_grid() -> tuple[Formulation, ...]:
    """All 61, each once: 4 of eps and v, 40 of rectified flow, 17 of EDM."""
    names = ["eps/linear", "eps/cos", "v/linear", "v/cos", "rf"]
    names += [f"rf/mode({scale})" for scale in (*_even(-1.0, 1.75, 7), 1.0)]
    names += [
        f"rf/lognorm({mean},{std})" for mean in _even(-1.0, 1.0, 5) for std in _even(0.2, 2.2, 6)
    ]
    names.append("rf/cosmap")
    names += [f"edm({mean},{std})" for mean in _even(-1.2, 1.2, 5) for std in _even(0.6, 1.8, 3)]
    names += ["edm/rf", "edm/cos"]
    return tuple(parse_formulation(name) for name in names)
