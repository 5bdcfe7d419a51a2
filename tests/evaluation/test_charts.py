"""Charts show what was logged, numbers that are not finite among it."""

import math

from rectiflow.evaluation.charts import Line, line_chart, smooth


def test_smoothing_takes_the_last_few() -> None:
    assert smooth([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 1.5, 2.5, 3.5]
    assert smooth([1.0, 2.0, 3.0], 1) == [1.0, 2.0, 3.0]


def test_a_number_that_is_not_finite_or_huge_spoils_no_other() -> None:
    assert smooth([1.0, math.inf, 0.5, 0.25], 2) == [1.0, 1.0, 0.5, 0.375]
    assert math.isnan(smooth([1.0, math.nan, 0.5], 1)[1])
    assert smooth([1e20, 0.9, 0.8, 0.7], 1) == [1e20, 0.9, 0.8, 0.7]


def test_one_point_is_seen() -> None:
    line = Line(name="run", color="red", xs=[5.0], ys=[0.7])
    assert "<circle" in line_chart([line], x_label="steps", y_label="loss")
