"""Plots of the studies' reports: curves with bands, scatters, grouped bars; as SVG files.

Drawn by matplotlib, which is imported when a report is written and not before.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rectiflow.studies.study import Plot

_GROUP_WIDTH = 0.8


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one name; `low` and `high` are the ends of a band around them."""

    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One bar in each group, from 0 to its height; `low` and `high` are the ends of its error."""

    heights: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def plot_curves(
    file: str,
    curves: Mapping[str, Curve],
    *,
    caption: str,
    x_label: str,
    y_label: str,
    is_x_log: bool = False,
    is_y_log: bool = False,
    is_scatter: bool = False,
) -> Plot:
    """Curves by name on shared axes; as points without lines when `is_scatter`."""

    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            if is_scatter:
                axes.plot(curve.xs, curve.ys, "o", label=name, markersize=4, alpha=0.8)
                continue
            (line,) = axes.plot(curve.xs, curve.ys, "o-", label=name, markersize=3)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    curve.xs, curve.low, curve.high, alpha=0.15, color=line.get_color()
                )
        axes.set_xlabel(x_label)
        if is_x_log:
            axes.set_xscale("log")
        if is_y_log:
            axes.set_yscale("log")
        axes.grid(alpha=0.25)

    return _plot(file, draw, caption=caption, y_label=y_label)


def plot_bars(
    file: str,
    groups: Sequence[str],
    bars: Mapping[str, Bars],
    *,
    caption: str,
    y_label: str,
    level: float | None = None,
) -> Plot:
    """Bars by name, side by side in each group; `level` draws a dashed line across."""

    def draw(axes: Any) -> None:
        width = _GROUP_WIDTH / max(1, len(bars))
        for place, (name, bar) in enumerate(bars.items()):
            xs = [i + width * (place + 0.5) - 0.5 * _GROUP_WIDTH for i in range(len(groups))]
            axes.bar(xs, bar.heights, width=width, label=name, alpha=0.85)
            if bar.low is not None and bar.high is not None:
                axes.vlines(xs, bar.low, bar.high, colors="black", linewidth=0.8)
        if level is not None:
            axes.axhline(level, color="black", linestyle="--", linewidth=0.8)
        axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
        axes.grid(axis="y", alpha=0.25)

    return _plot(file, draw, caption=caption, y_label=y_label)


def _plot(file: str, draw: Callable[[Any], None], *, caption: str, y_label: str) -> Plot:
    # Without pyplot: no global state, no windows.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The same numbers give the same bytes.
    with rc_context({"svg.hashsalt": "rectiflow", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_ylabel(y_label)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return Plot(file=file, caption=caption, content=content.getvalue())
