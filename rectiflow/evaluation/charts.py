"""Charts of the report as inline SVG: lines over steps, lines over t, intervals, a bar of stages.

Colours come from the page's CSS variables, so that one drawing serves light and dark. No plotting
library: a report needs four kinds of marks, and a newcomer's machine needs no more packages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from rectiflow.evaluation.bootstrap import Interval

_WIDTH, _HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 64, 14, 40


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named curve; `color` is a CSS colour or variable, `opacity` sets older curves back."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: str
    opacity: float = 1.0
    has_marks: bool = False
    is_labeled: bool = True


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    format_x: Callable[[float], str] = lambda x: f"{x:,.0f}",
) -> str:
    """An SVG of curves on shared axes, each labelled at its right end.

    Raises:
        ValueError: no curve has a finite point.
    """
    points = [(x, y) for line in lines for x, y in zip(line.xs, line.ys) if math.isfinite(y)]
    if not points:
        raise ValueError("there is nothing to draw: no curve has a finite point")
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points), 5)
    y_ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points), 5)
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low = min(y_ticks[0], min(y for _, y in points))
    y_high = max(y_ticks[-1], max(y for _, y in points))

    def place_x(x: float) -> float:
        return _LEFT + (x - x_low) / ((x_high - x_low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        return _TOP + (y_high - y) / ((y_high - y_low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(x_ticks, y_ticks, place_x, place_y, format_x, x_low, x_high)]
    labels: list[tuple[float, Line]] = []
    for line in lines:
        finite = [(x, y) for x, y in zip(line.xs, line.ys) if math.isfinite(y)]
        if not finite:
            continue
        parts.append(_curve(line, [(place_x(x), place_y(y), x, y) for x, y in finite]))
        if line.is_labeled:
            labels.append((place_y(finite[-1][1]), line))
    parts.extend(_end_labels(labels))
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 4}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    title = f"{y_label} over {x_label}"
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def interval_bar(interval: Interval, color: str) -> str:
    """A bar from 0 to the mean with a whisker over the interval, on a scale from 0 to 1."""
    width, height, middle = 132, 14, 7
    low, mean, high = (value * width for value in (interval.low, interval.mean, interval.high))
    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{interval}"><title>{interval}</title>'
        f'<rect class="track" x="0" y="3" width="{width}" height="8" rx="2"/>'
        f'<rect x="0" y="3" width="{mean:.1f}" height="8" rx="2" style="fill:{color}"/>'
        f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}'
        f'M{low:.1f} 4V10M{high:.1f} 4V10"/></svg>'
    )


def stage_bar(shares: Sequence[tuple[str, float]], colors: Sequence[str]) -> str:
    """One bar divided in proportion to the stages' seconds; names show on hover."""
    width, gap = 1000.0, 3.0
    total = sum(seconds for _, seconds in shares) or 1.0
    parts: list[str] = []
    x = 0.0
    for (name, seconds), color in zip(shares, colors):
        wide = seconds / total * width
        title = f"{escape(name)}: {format_seconds(seconds)}"
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="{max(wide - gap, 1.0):.1f}" height="22" rx="3" '
            f'style="fill:{color}"><title>{title}</title></rect>'
        )
        x += wide
    return (
        f'<svg class="stages" viewBox="0 0 {width:.0f} 22" preserveAspectRatio="none" '
        f'role="img" aria-label="share of the time by stage">{"".join(parts)}</svg>'
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_seconds(seconds: float) -> str:
    """A duration as a person says it: 8.4 s, 1 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Means over the finite ones of the last `window` values; NaN where none of them is."""
    means: list[float] = []
    for i in range(len(values)):
        seen = [value for value in values[max(0, i + 1 - window) : i + 1] if math.isfinite(value)]
        means.append(math.fsum(seen) / len(seen) if seen else math.nan)
    return means


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    format_x: Callable[[float], str],
    x_low: float,
    x_high: float,
) -> str:
    parts: list[str] = []
    for y in y_ticks:
        level = place_y(y)
        parts.append(f'<path class="grid" d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{level + 3.5:.1f}" text-anchor="end">'
            f"{y:g}</text>"
        )
    slack = (x_high - x_low) * 1e-6
    parts.extend(
        f'<text class="tick" x="{place_x(x):.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
        f'text-anchor="middle">{escape(format_x(x))}</text>'
        for x in x_ticks
        if x_low - slack <= x <= x_high + slack
    )
    return "".join(parts)


def _curve(line: Line, points: Sequence[tuple[float, float, float, float]]) -> str:
    """A path, with marks where wanted; a point is its place on the page, then its values."""
    path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top, _, _ in points)
    style = f"stroke:{line.color};opacity:{line.opacity:.2f}"
    parts = [
        f'<path class="curve" d="{path}" style="{style}"><title>{escape(line.name)}</title></path>'
    ]
    if line.has_marks or len(points) == 1:  # a path of one point shows nothing
        parts.extend(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" style="fill:{line.color};'
            f'opacity:{line.opacity:.2f}"><title>{escape(line.name)}: {y:.4g} at '
            f"{x:g}</title></circle>"
            for left, top, x, y in points
        )
    return "".join(parts)


def _end_labels(labels: list[tuple[float, Line]]) -> list[str]:
    """Names at the curves' right ends, pushed apart so that none covers another."""
    parts: list[str] = []
    lowest = -math.inf
    for level, line in sorted(labels, key=lambda label: label[0]):
        lowest = max(level + 3.5, lowest + 13.0)
        parts.append(
            f'<text class="label" x="{_WIDTH - _RIGHT + 8}" y="{lowest:.1f}" '
            f'style="fill:{line.color}">{escape(line.name)}</text>'
        )
    return parts
