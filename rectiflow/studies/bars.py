"""Grouped bars with error bars for the studies' reports, as SVG files.

Drawn by matplotlib, which is imported when a report is written and not before.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rectiflow.studies.study import Plot

_GROUP_WIDTH = 0.8


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One bar in each group, from 0 to its height; `low` and `high` are the ends of its error."""

    heights: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


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
    # Without pyplot: no global state, no windows.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The same numbers give the same bytes.
    with rc_context({"svg.hashsalt": "rectiflow", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        width = _GROUP_WIDTH / max(1, len(bars))
        for place, (name, bar) in enumerate(bars.items()):
            xs = [i + width * (place + 0.5) - 0.5 * _GROUP_WIDTH for i in range(len(groups))]
            axes.bar(xs, bar.heights, width=width, label=name, alpha=0.85)
            if bar.low is not None and bar.high is not None:
                axes.vlines(xs, bar.low, bar.high, colors="black", linewidth=0.8)
        if level is not None:
            axes.axhline(level, color="black", linestyle="--", linewidth=0.8)
        axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
        axes.set_ylabel(y_label)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return Plot(file=file, caption=caption, content=content.getvalue())
