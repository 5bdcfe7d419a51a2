"""The page is one file that loads nothing, and holds every figure it was given."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation.example_report import example_report
from PIL import Image

from rectiflow.base.errors import UserError
from rectiflow.evaluation.bootstrap import Interval
from rectiflow.evaluation.charts import (
    Line,
    format_seconds,
    interval_bar,
    line_chart,
    nice_ticks,
    smooth,
)
from rectiflow.evaluation.report import Report, render_report, write_report

VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def report() -> Report:
    return example_report(per_task=3)


class _Balance(HTMLParser):
    """Fails on a tag that closes another than the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass


def test_loads_nothing_and_runs_nothing(report: Report) -> None:
    page = render_report(report)
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    assert "<script" not in page
    assert "http" not in page
    assert "url(" not in page
    assert set(re.findall(r'src="([^,"]*)', page)) == {"data:image/png;base64"}
    for svg in re.findall(r"<svg.*?</svg>", page):
        ElementTree.fromstring(svg)


def test_holds_what_it_was_given(report: Report) -> None:
    page = render_report(report)
    for text in (
        report.title,
        f"{report.evaluation.overall.seen.lenient.mean:.2f}",
        "Typography",
        "3,000 steps",
        "10 min 3 s",
        "guidance 4",
        "rectiflow sample demo/run &quot;a red circle&quot; -n 4",
        "expected 3 circles, found 2 &lt;b&gt;&amp;",
        "unseen",
    ):
        assert text in page
    assert page.count('class="card good"') + page.count('class="card bad"') == 7 * 3 + 6 * 2
    assert page.count('class="chart"') == 4


def test_parts_without_content_are_left_out(report: Report) -> None:
    empty = replace(
        report, pictures={}, losses=(), validation=(), sample_rows=(), sample_prompts=()
    )
    page = render_report(empty)
    assert "<img" not in page
    for heading in ("What it draws", "How it learned", "From noise to meaning"):
        assert heading not in page


def test_writes_whole_or_not_at_all(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "report.html" / "below.html", report)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.12, 0.31, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        (0, 6000, [0, 2000, 4000, 6000]),
        (3.0, 3.0, [3.0, 4.0, 5.0, 6.0]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 5)[0] <= low
    assert nice_ticks(low, high, 5)[-1] >= high
    if ticks[0] != 0.0 or high != 1.0:
        assert nice_ticks(low, high, 5) == ticks


def test_smoothing_is_a_mean_over_the_last_values() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (42.4, "42 s"), (80, "1 min 20 s"), (600, "10 min"), (7500, "2 h 5 min")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_chart_leaves_out_what_is_not_finite_and_refuses_nothing_at_all() -> None:
    line = Line(name="a <b>", xs=[0, 1, 2], ys=[1.0, math.nan, 2.0], color="red", has_marks=True)
    chart = line_chart([line], x_label="step", y_label="loss")
    assert "nan" not in chart
    assert chart.count("<circle") == 2
    assert "a &lt;b&gt;" in chart
    with pytest.raises(ValueError, match="nothing to draw"):
        line_chart([replace(line, ys=[math.nan] * 3)], x_label="step", y_label="loss")


def test_an_interval_is_drawn_to_scale() -> None:
    bar = interval_bar(Interval(mean=0.5, low=0.25, high=1.0), "red")
    assert 'width="66.0"' in bar
    assert "M33.0 7H132.0" in bar


@pytest.mark.browser
def test_a_browser_shows_it_in_light_and_dark(report: Report, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    write_report(tmp_path / "report.html", report)
    brightness: list[float] = []
    for i, option in enumerate(("--disable-gpu", "--force-dark-mode")):
        shot = tmp_path / f"{i}.png"
        options = f"--headless --no-sandbox --no-first-run --user-data-dir={tmp_path / str(i)}"
        subprocess.run(
            [browser, *options.split(), option, f"--screenshot={shot}", "--window-size=1280,3000",
             (tmp_path / "report.html").as_uri()],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        brightness.append(float(np.asarray(Image.open(shot).convert("L")).mean()))
    assert brightness[0] > 200
    assert brightness[1] < 100
