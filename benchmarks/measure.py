"""What every benchmark shares: interleaved timing, a summary with spread, one JSON row."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rectiflow.training.environment import describe_environment


def interleaved_ms(
    calls: Mapping[str, Callable[[], object]], *, warm_up: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Median and p10–p90 of each call in milliseconds.

    The calls take turns, so that a machine that slows down slows all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: summarize(values) for name, values in times.items()}


def summarize(values: list[float]) -> dict[str, float]:
    """Median, p10 and p90, rounded to four decimals."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    p10, median, p90 = torch.tensor(values, dtype=torch.float64).quantile(levels).tolist()
    return {"median": round(median, 4), "p10": round(p10, 4), "p90": round(p90, 4)}


def print_row(subject: str, **fields: Any) -> None:
    """One line of JSON: the subject, what was measured, hardware, versions and commit."""
    row = {"subject": subject, **fields, "threads": torch.get_num_threads()}
    print(json.dumps(row | {"environment": describe_environment()}, default=str))
