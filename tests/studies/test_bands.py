"""Curves of means over seeds."""

import math

import numpy as np
import pytest

from rectiflow.studies.bands import curve_over


def test_a_curve_is_sorted_and_its_band_is_one_deviation_wide() -> None:
    rows = [{"step": step, "loss": step + offset} for step in (2, 1) for offset in (-1.0, 1.0)]
    curve = curve_over(rows, x="step", y="loss")
    assert curve.xs == [1, 2]
    assert curve.ys == [1.0, 2.0]
    assert curve.low is not None
    assert curve.high is not None
    assert np.subtract(curve.high, curve.low) == pytest.approx([2 * math.sqrt(2)] * 2)


def test_one_seed_has_no_band() -> None:
    curve = curve_over([{"step": 1, "loss": 0.5}], x="step", y="loss")
    assert curve.low == curve.ys == curve.high
