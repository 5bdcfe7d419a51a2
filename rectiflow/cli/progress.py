"""A progress bar on stderr behind the plain callback (done, total) that the layers below take."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def progress_bar(doing: str, unit: str) -> Generator[Callable[[int, int], None], None, None]:
    """Yields the callback; the bar appears with its first call, and only on a terminal."""
    from tqdm import tqdm

    bars: list[tqdm[NoReturn]] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc=doing, unit=unit, total=total, leave=False, disable=None))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()
