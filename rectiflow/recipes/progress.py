"""How far a stage is: a line on stderr, renewed on a terminal, now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rectiflow.evaluation.charts import format_seconds


class Counter:
    """Callback (done, total) of the layers below; a context manager that ends the line."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._started = self._shown_at = time.perf_counter()
        self._interval_s = 0.2 if sys.stderr.isatty() else 10.0

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._shown_at < self._interval_s and done < total:
            return
        self._shown_at = now
        left_s = (now - self._started) / max(done, 1) * (total - done)
        text = f"{done:,} of {total:,} {self._unit}  {done / max(total, 1):4.0%}"
        # The first few take much longer than the rest: kernels and caches warm up.
        is_telling = total / 50 < done < total
        text += f"  {format_seconds(left_s)} left" if is_telling else ""
        start, end = ("\r", "\x1b[K") if sys.stderr.isatty() else ("", "\n")
        sys.stderr.write(f"{start}{text}{end}")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\n")
            sys.stderr.flush()
