"""What watches a run: the metrics log, TensorBoard, the progress line, sample pictures.

Hooks see events and change nothing, so that a run's weights do not depend on who looks at it.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from rectiflow.base.files import atomic_write, explain_os_error
from rectiflow.base.log import EventLog, read_events
from rectiflow.flow.emphasis import Emphasis
from rectiflow.training.diagnosis import Diagnosis
from rectiflow.training.meter import Usage, pace
from rectiflow.training.spikes import Spike
from rectiflow.training.validation import ValidationLoss

# (EMA model, prompts) -> pictures [n h w 3], one a prompt.
DrawSamples = Callable[[nn.Module, tuple[str, ...]], UInt8[np.ndarray, "n h w 3"]]


@dataclass(frozen=True, kw_only=True)
class Started:
    """The loop begins, or goes on, after `step` finished steps of `max_steps`."""

    step: int
    max_steps: int
    emphasis: Emphasis


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """One optimizer step; for progress lines."""

    step: int
    loss: float
    num_images: int


@dataclass(frozen=True, kw_only=True)
class TrainLogged:
    """The mean loss since the last log line; gradient norm and rate are those of this step.

    So is `similarity`, that of an aligned step (`training.alignment`).
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    elapsed_s: float
    usage: Usage
    similarity: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What curves are drawn of."""
        figures = {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "images_per_second": self.images_per_second,
        }
        return figures if self.similarity is None else figures | {"similarity": self.similarity}


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Held-out loss of the raw and of the averaged weights; of power averages by sigma_rel."""

    step: int
    raw: ValidationLoss
    ema: ValidationLoss
    elapsed_s: float
    power_emas: Mapping[str, ValidationLoss] = field(default_factory=dict[str, ValidationLoss])

    @property
    def by_weights(self) -> dict[str, ValidationLoss]:
        """All of them by name: raw, ema, ema_0.05, …"""
        power = {f"ema_{sigma_rel}": loss for sigma_rel, loss in self.power_emas.items()}
        return {"raw": self.raw, "ema": self.ema} | power


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """What went on inside the blocks during `step`."""

    step: int
    diagnosis: Diagnosis


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Pictures of the EMA weights [n h w 3], one a prompt."""

    step: int
    prompts: tuple[str, ...]
    images: UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A complete checkpoint lies at `path`."""

    step: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """`step` was a spike; the run goes on after step `back_to`, without the batches `skipped`."""

    step: int
    back_to: int
    spike: Spike
    skipped: tuple[int, ...]


Event = (
    Started
    | StepDone
    | TrainLogged
    | Validated
    | Diagnosed
    | Sampled
    | CheckpointSaved
    | RolledBack
)


class Hook(ABC):
    """Is told every event in order, then closed, also after an error."""

    @abstractmethod
    def handle(self, event: Event) -> None: ...

    def close(self) -> None:  # noqa: B027
        """Finish; by default there is nothing to do."""


class MetricsFile(Hook):
    """`metrics.jsonl`: a line per log interval ("train"), validation and diagnosis."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Drop lines past `after_step`: the steps that a continued run will do again."""
        self._path = path
        self._log = self._open(after_step)

    def _open(self, after_step: int) -> EventLog:
        if self._path.exists():
            kept = [event for event in read_events(self._path) if event["step"] <= after_step]
            with atomic_write(self._path, "w") as file:
                file.writelines(json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
        return EventLog(self._path)

    def handle(self, event: Event) -> None:
        match event:
            case TrainLogged():
                self._log.write("train", **asdict(event))
            case Validated():
                self._log.write("validation", **asdict(event))
            case Diagnosed():
                self._log.write("diagnosis", step=event.step, **asdict(event.diagnosis))
            case RolledBack():
                self._log.close()
                self._log = self._open(event.back_to)
            case _:
                pass

    def close(self) -> None:
        self._log.close()


class TensorBoard(Hook):
    """The same figures, and sample pictures, as a TensorBoard log.

    Raises:
        UserError: the log cannot be written; the disk is full, say.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        self._folder = folder
        with self._explained():
            self._writer = _EventsFile(folder, after_step=after_step)

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise explain_os_error(error, self._folder, "write the log") from error

    def handle(self, event: Event) -> None:
        with self._explained():
            self._write(event)
            self._writer.flush()

    def close(self) -> None:
        with self._explained():
            self._writer.close()

    def _write(self, event: Event) -> None:
        writer = self._writer
        match event:
            case TrainLogged():
                for name, value in event.figures.items():
                    writer.add_scalar(f"train/{name}", value, event.step)
                for name, value in usage_figures(event.usage).items():
                    writer.add_scalar(f"usage/{name}", value, event.step)
            case Validated():
                for weights, result in event.by_weights.items():
                    writer.add_scalar(f"validation/{weights}", result.loss, event.step)
                    writer.add_scalar(f"validation/{weights}_error", result.error, event.step)
                    for t, loss, error in zip(
                        result.levels, result.per_level, result.per_level_error, strict=True
                    ):
                        writer.add_scalar(f"validation_{weights}/t={t:.3f}", loss, event.step)
                        writer.add_scalar(
                            f"validation_{weights}_error/t={t:.3f}", error, event.step
                        )
            case Diagnosed():
                found = event.diagnosis
                names = [f"block_{i:02d}" for i in range(1, len(found.blocks) + 1)]
                for name, part in zip([*names, "around"], [*found.blocks, found.around]):
                    for figure, value in asdict(part).items():
                        if value is not None:
                            writer.add_scalar(f"{figure}/{name}", value, event.step)
            case Sampled():
                writer.add_images("samples", event.images, event.step)
            case RolledBack():
                writer.close()
                self._writer = _EventsFile(self._folder, after_step=event.back_to)
            case _:
                pass


class _EventsFile:
    """One file of a TensorBoard log, with records as torch's `SummaryWriter` makes them.

    That one writes from a thread of its own: a full disk puts the thread's traceback on stderr, and
    reaches the run at some later figure, or never. Here the write that fails raises.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        # Slow to import, and not needed before the first run starts.
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        messages: Any = event_pb2  # its classes are made when it is imported
        self._record, self._summary = messages.Event, summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files by name, so that the youngest comes last.
        self._file = (folder / f"events.out.tfevents.{time.time():.6f}").open("xb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        # What earlier files say of this step and later ones is forgotten.
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._add(step=after_step + 1, session_log=start)

    def _add(self, **fields: Any) -> None:
        record = self._record(wall_time=time.time(), **fields)
        self._records.write(record.SerializeToString())

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._add(summary=self._summary.scalar(name, value), step=step)

    def add_images(self, name: str, images: UInt8[np.ndarray, "n h w 3"], step: int) -> None:
        self._add(summary=self._summary.image(name, images, dataformats="NHWC"), step=step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def usage_figures(usage: Usage) -> dict[str, float]:
    """A `Usage` as named curves; without MFU where the device's peak is not known."""
    figures = {f"{name}_share": share for name, share in usage.shares.items()}
    figures["peak_memory_gb"] = usage.peak_memory_bytes / 1e9
    figures["tflops_per_second"] = usage.flops_per_second / 1e12
    return figures if usage.mfu is None else figures | {"mfu": usage.mfu}


class SamplePictures(Hook):
    """`samples/step_00001234.png`: all pictures of one moment as a grid, row by row.

    Those after `after_step` are removed: the run has gone back to it.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        self._folder = folder
        self._forget(after_step)

    def handle(self, event: Event) -> None:
        if isinstance(event, Sampled):
            with atomic_write(self._folder / f"step_{event.step:08d}.png") as file:
                Image.fromarray(grid(event.images)).save(file, format="PNG")
        elif isinstance(event, RolledBack):
            self._forget(event.back_to)

    def _forget(self, after_step: int) -> None:
        for path in self._folder.glob("step_*.png"):
            number = path.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > after_step:
                path.unlink(missing_ok=True)


@runtime_checkable
class Stream(Protocol):
    """Where progress is written: stderr, or anything like it."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


class Progress(Hook):
    """Where the run stands: a bar on a terminal, elsewhere a plain line every `interval_s`."""

    def __init__(self, stream: Stream, *, interval_s: float = 10.0) -> None:
        self._stream = stream
        self._interval_s = interval_s if not stream.isatty() else 0.2
        self._max_steps = 0
        self._first_step = 0
        self._loss = math.nan
        self._usage = ""
        self._since = self._shown_at = time.monotonic()

    def handle(self, event: Event) -> None:
        match event:
            case Started():
                self._max_steps, self._first_step = event.max_steps, event.step
                self._since = self._shown_at = time.monotonic()
                self._print_line(str(event.emphasis))
            case StepDone():
                # A smooth loss is easier to read than one batch's.
                is_first = math.isnan(self._loss)
                self._loss = event.loss if is_first else 0.95 * self._loss + 0.05 * event.loss
                now = time.monotonic()
                if now - self._shown_at >= self._interval_s or event.step == self._max_steps:
                    self._shown_at = now
                    self._show(event, now - self._since)
            case TrainLogged():
                self._usage = f"{event.usage}  "
            case Validated():
                self._print_line(
                    f"step {event.step}  held-out loss {event.ema.loss:.4f} ± "
                    f"{event.ema.error:.4f} (EMA), {event.raw.loss:.4f} (raw)"
                )
            case RolledBack():
                # Steps taken back took their time too.
                self._first_step -= event.step - 1 - event.back_to
                batches = ", ".join(str(place) for place in event.skipped)
                self._print_line(
                    f"step {event.step}  {event.spike}: back to step {event.back_to}, without "
                    f"batch {batches}"
                )
            case _:
                pass

    def close(self) -> None:
        if self._stream.isatty():
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, event: StepDone, seconds: float) -> None:
        rate = (event.step - self._first_step) / max(seconds, 1e-9)
        left_s = (self._max_steps - event.step) / max(rate, 1e-9)
        share = event.step / self._max_steps
        text = (
            f"step {event.step}/{self._max_steps}  {share:4.0%}  loss {self._loss:.4f}  "
            f"{pace(rate * event.num_images)} images/s  {self._usage}ETA {clock(left_s)}"
        )
        if self._stream.isatty():
            bar = "█" * round(20 * share) + "░" * (20 - round(20 * share))
            self._stream.write(f"\r{bar} {text}\x1b[K")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _print_line(self, text: str) -> None:
        start, end = ("\r", "\x1b[K\n") if self._stream.isatty() else ("", "\n")
        self._stream.write(f"{start}{text}{end}")
        self._stream.flush()


def grid(
    images: UInt8[np.ndarray, "n h w 3"], *, columns: int = 8, gap_px: int = 2
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures side by side, `columns` to a row, on white."""
    n, h, w, _ = images.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    canvas = np.full(
        (rows * (h + gap_px) + gap_px, columns * (w + gap_px) + gap_px, 3), 255, np.uint8
    )
    for i, image in enumerate(images):
        top = gap_px + i // columns * (h + gap_px)
        left = gap_px + i % columns * (w + gap_px)
        canvas[top : top + h, left : left + w] = image
    return canvas


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
