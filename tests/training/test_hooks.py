import io
import resource
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rectiflow.base.errors import UserError
from rectiflow.base.log import read_events
from rectiflow.flow import rectified_flow
from rectiflow.flow.emphasis import emphasis_of
from rectiflow.training.hooks import (
    MetricsFile,
    Progress,
    Started,
    StepDone,
    TensorBoard,
    TrainLogged,
    Validated,
    clock,
    grid,
)
from rectiflow.training.meter import Usage
from rectiflow.training.validation import LEVELS, ValidationLoss

EMPHASIS = emphasis_of(rectified_flow())
USAGE = Usage(
    shares={"data": 0.02, "step": 0.9, "validation": 0.05, "sampling": 0.0, "saving": 0.03},
    peak_memory_bytes=512_000_000,
    flops_per_second=43.2e9,
    mfu=None,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(step: int, loss: float = 1.0) -> TrainLogged:
    return TrainLogged(
        step=step,
        loss=loss,
        gradient_norm=1.0,
        learning_rate=1e-3,
        images_per_second=10.0,
        elapsed_s=1.0,
        usage=USAGE,
    )


def validated(step: int) -> Validated:
    result = ValidationLoss(
        loss=0.5, levels=LEVELS, per_level=(0.5,) * 7, error=0.01, per_level_error=(0.02,) * 7
    )
    return Validated(step=step, raw=result, ema=result, elapsed_s=1.0)


def test_metrics_past_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, after_step=0)
    for step in (2, 4, 6):
        metrics.handle(logged(step))
        metrics.handle(validated(step))
    metrics.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 7, "lo')  # killed in mid-line
    again = MetricsFile(path, after_step=4)
    again.handle(logged(6, loss=2.0))
    again.close()
    events = read_events(path)
    assert [(e["kind"], e["step"]) for e in events] == [
        ("train", 2),
        ("validation", 2),
        ("train", 4),
        ("validation", 4),
        ("train", 6),
    ]
    assert events[-1]["loss"] == 2.0


@contextmanager
def files_of_at_most(num_bytes: int) -> Generator[None]:
    """The kernel refuses to let a file grow further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("log", [MetricsFile, TensorBoard])
def test_a_log_that_cannot_grow_is_told_by_the_event_that_did_not_fit(
    log: type[MetricsFile | TensorBoard], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = log(tmp_path / "log", after_step=0)
    hook.handle(logged(1))
    threads, before = threading.active_count(), threading.excepthook
    with files_of_at_most(2048):
        with pytest.raises(UserError, match=r"cannot write the log .*log: File too large"):
            for step in range(2, 100):
                hook.handle(logged(step))
        with pytest.raises(UserError, match="cannot write the log"):
            hook.close()
    assert (threading.active_count(), threading.excepthook) == (threads, before)
    assert capfd.readouterr().err == ""


def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(UserError, match="cannot write the log .* a file is in the way"):
        TensorBoard(tmp_path / "log", after_step=0)


def test_tensorboard_forgets_what_is_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, after_step=0)
    for step in (2, 4, 6):
        first.handle(logged(step))
    first.close()
    again = TensorBoard(tmp_path, after_step=4)
    again.handle(logged(6, loss=2.0))
    again.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 1), (4, 1), (6, 2)]


def test_a_log_file_gets_plain_lines_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(stream, interval_s=3600.0)
    progress.handle(Started(step=0, max_steps=100, emphasis=EMPHASIS))
    for step in range(1, 101):
        progress.handle(StepDone(step=step, loss=0.25, num_images=64))
        if step == 50:
            progress.handle(validated(step))
            progress.handle(logged(step))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == str(EMPHASIS)
    assert lines[1] == "step 50  held-out loss 0.5000 ± 0.0100 (EMA), 0.5000 (raw)"
    assert lines[2].startswith("step 100/100  100%  loss 0.2500  ")
    assert lines[2].endswith(" images/s  43.2 GFLOP/s, data 2%, 512 MB  ETA 0:00")
    assert len(lines) == 3


def test_a_terminal_gets_a_bar_on_one_line() -> None:
    stream = Terminal()
    progress = Progress(stream, interval_s=3600.0)
    progress.handle(Started(step=0, max_steps=2, emphasis=EMPHASIS))
    progress.handle(StepDone(step=2, loss=0.25, num_images=64))
    progress.close()
    text = stream.getvalue()
    first, _, rest = text.partition("\n")
    assert str(EMPHASIS) in first
    assert rest.startswith("\r" + "█" * 20)
    assert rest.count("\n") == 1


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3723.4, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_grid_places_pictures_row_by_row() -> None:
    images = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (1, 2, 3)])
    canvas = grid(images, columns=2, gap_px=1)
    assert canvas.shape == (2 * 5 + 1, 2 * 7 + 1, 3)
    assert (canvas[1, 1] == 1).all()
    assert (canvas[1, 8] == 2).all()
    assert (canvas[6, 1] == 3).all()
    assert (canvas[6, 8] == 255).all()
