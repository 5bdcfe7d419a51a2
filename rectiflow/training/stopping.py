"""Signals that ask a run to stop, noted for the loop to act on between two steps.

On the walk of a sample: the loop finishes its step, saves a checkpoint and returns.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(kw_only=True)
class StopRequest:
    """The number of the signal that asked the run to stop, None as long as none did."""

    signal: int | None = None


@contextmanager
def stop_request(*, is_patient: bool) -> Generator[StopRequest]:
    """Note the first SIGINT or SIGTERM; a second one acts as if nothing had caught it.

    Not if `is_patient`: one of several processes hears from the cluster and from torchrun that it
    should stop, and torchrun ends it if it takes too long.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        if not is_patient:
            restore()

    # Python delivers signals to the main thread, and lets no other one set handlers.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
