"""A run's figures on Weights & Biases, for who asks for it and has installed it.

The JSONL and TensorBoard logs are written all the same; nothing is sent unless it is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectiflow.base.errors import UserError
from rectiflow.base.files import read_json
from rectiflow.training.hooks import (
    Diagnosed,
    Event,
    Hook,
    RolledBack,
    Sampled,
    Started,
    TrainLogged,
    Validated,
    grid,
    usage_figures,
)


class WeightsAndBiases(Hook):
    """Sends the figures of `run` to a project; a continued run goes on in the same curves.

    Raises:
        UserError: the package `wandb` is not installed, or does not let the run begin.
    """

    def __init__(self, project: str, run: Path) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                "--wandb needs the package wandb, which is not installed; pip install wandb, or "
                "leave it out: metrics.jsonl and tensorboard/ hold the same figures"
            ) from error
        self._project, self._folder = project, run
        self._run: Any = None

    def handle(self, event: Event) -> None:
        match event:
            case Started():
                self._run = self._begin()
                # Their own count of steps only goes up, and a run may go back.
                self._run.define_metric("step")
                self._run.define_metric("*", step_metric="step")
            case TrainLogged():
                figures = {f"train/{name}": value for name, value in event.figures.items()}
                usage = usage_figures(event.usage)
                self._send(event.step, figures | {f"usage/{k}": v for k, v in usage.items()})
            case Validated():
                figures = {f"validation/{w}": found.loss for w, found in event.by_weights.items()}
                for t, loss in zip(event.ema.levels, event.ema.per_level, strict=True):
                    figures[f"validation_ema/t={t:.3f}"] = loss
                self._send(event.step, figures)
            case Diagnosed():
                self._send(event.step, {"diagnosis": asdict(event.diagnosis)})
            case Sampled():
                picture = self._wandb.Image(grid(event.images), caption=" | ".join(event.prompts))
                self._send(event.step, {"samples": picture})
            case RolledBack():
                self._send(event.step, {"spike": event.spike.value})
            case _:
                pass

    def close(self) -> None:
        if self._run is not None:
            # Called on the way out: an error that ends the run is being handled then.
            self._run.finish(exit_code=0 if sys.exc_info()[0] is None else 1)

    def _begin(self) -> Any:
        try:
            return self._wandb.init(
                project=self._project,
                name=self._folder.resolve().name,
                id=_identity(self._folder),
                resume="allow",
                dir=str(self._folder),
                config=read_json(self._folder / "recipe.json"),
            )
        except Exception as error:  # login, network, whatever the package comes up with
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"Weights & Biases does not let the run begin: {reason}; run `wandb login`, set "
                "WANDB_MODE=offline, or leave out --wandb"
            ) from error

    def _send(self, step: int, figures: dict[str, Any]) -> None:
        self._run.log({"step": step, **figures})


def _identity(run: Path) -> str:
    """The same for every session of a run, and another for a new run in the same place."""
    first = read_json(run / "environment.json")["sessions"][0]
    key = f"{run.resolve()} {first['started_at']}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]
