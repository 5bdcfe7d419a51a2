"""What a study's cells work with: pictures of the embedded world, latent stores, training runs.

Everything lies in the study's folder and is made once, whichever process needs it first. Parts and
pictures are the shipped ones unless a study brings its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rectiflow.base.errors import ConfigError, DivergedError
from rectiflow.base.files import atomic_directory, file_lock
from rectiflow.base.log import read_events
from rectiflow.data.encode import encode_folder
from rectiflow.data.store_format import HEADER_FILE
from rectiflow.distributed.world import CPU, World
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.autoencoder.files import load_autoencoder_folder, save_autoencoder
from rectiflow.models.backbones import build_backbone
from rectiflow.models.frame import Backbone
from rectiflow.models.shipped import load_autoencoder, load_conditioner
from rectiflow.shapeworld.folder import write_folder
from rectiflow.shapeworld.world import world_by_name
from rectiflow.training.checkpoint import checkpoint_of
from rectiflow.training.feed import Feed, open_feed
from rectiflow.training.loop import train
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.tensor_files import SavedTensors


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """The first `count` training pictures of an embedded world, at one multiple of its size.

    Raises:
        ConfigError: `resolution_px` is no multiple of the world's canvas.
    """

    world: str = "small"
    count: int
    resolution_px: int = 64

    def __post_init__(self) -> None:
        canvas_px = world_by_name(self.world).canvas_px
        if self.scale < 1 or self.resolution_px % canvas_px:
            raise ConfigError(
                f"resolution_px={self.resolution_px} is no multiple of the {canvas_px} px of the "
                f"world {self.world}; choose one"
            )

    @property
    def scale(self) -> int:
        """Pixels for each of the world's own."""
        return self.resolution_px // world_by_name(self.world).canvas_px

    @property
    def name(self) -> str:
        return f"{self.world}-{self.resolution_px}px-{self.count}"


class Bench:
    """The shared parts of one study's folder; what computes does so on `device`."""

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        self.folder, self.device = folder, device

    def pictures(self, wanted: PictureSet) -> Path:
        """A folder of captioned pictures, drawn when it is missing."""
        path = self.folder / "data" / f"pictures-{wanted.name}"
        with file_lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_folder(
                    world_by_name(wanted.world),
                    path,
                    count=wanted.count,
                    split="train",
                    scale=wanted.scale,
                )
        return path

    def store(
        self,
        wanted: PictureSet,
        *,
        name: str = "shipped",
        autoencoder: Callable[[], Autoencoder] = load_autoencoder,
    ) -> Path:
        """A latent store of the pictures by the autoencoder `name`, encoded when it is missing."""
        pictures = self.pictures(wanted)
        path = self.folder / "data" / f"store-{wanted.name}-{name}"
        with file_lock(path.with_name(f".{path.name}.lock")):
            if not (path / HEADER_FILE).exists():
                encode_folder(
                    pictures,
                    path,
                    autoencoder().to(self.device),
                    load_conditioner().to(self.device),
                    resolution_px=wanted.resolution_px,
                )
        return path

    def autoencoder(self, name: str, make: Callable[[], Autoencoder]) -> Autoencoder:
        """The study's own autoencoder `name`, made when it is missing; frozen, in float32."""
        path = self.folder / "data" / f"autoencoder-{name}"
        with file_lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                with atomic_directory(path) as unfinished:
                    save_autoencoder(make(), unfinished, dtype=torch.float32)
        return load_autoencoder_folder(path)

    def train(self, recipe: TrainRecipe, store: Path | Feed, folder: Path) -> TrainedRun:
        """Train a recipe in `folder/run`, or go on there.

        Raises:
            DivergedError: the loss is not finite any more.
            KeyboardInterrupt: it was asked to stop, and has saved its state.
        """
        feed = store if isinstance(store, Feed) else open_feed(store, recipe)
        world = World(device=self.device)
        result = train(recipe, feed, run_folder(folder), progress=False, world=world)
        if result.signal is not None:  # in the last step too, after which there is more to do
            raise KeyboardInterrupt
        return self.trained(recipe, feed, folder)

    def trained(self, recipe: TrainRecipe, feed: Feed, folder: Path) -> TrainedRun:
        """What `train` has made so far."""
        return TrainedRun(folder=run_folder(folder), recipe=recipe, feed=feed, device=self.device)


def run_folder(cell_folder: Path) -> Path:
    """Where a cell trains."""
    return cell_folder / "run"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run with the checkpoints that it kept; their networks come on `device`."""

    folder: Path
    recipe: TrainRecipe
    feed: Feed
    device: torch.device = CPU

    def validations(self) -> list[Validation]:
        """The held-out losses over the run, NaN and infinity among them."""
        return [
            Validation(
                step=event["step"],
                # The log spells numbers that are not finite.
                ema=float(event["ema"]["loss"]),
                raw=float(event["raw"]["loss"]),
                elapsed_s=event["elapsed_s"],
            )
            for event in read_events(self.folder / "metrics.jsonl", "validation")
        ]

    def finite_validations(self) -> list[Validation]:
        """The held-out losses that are finite, the last one among them.

        Raises:
            DivergedError: the last one is not finite.
        """
        found = self.validations()
        if not found[-1].is_finite:
            raise DivergedError(
                f"the held-out loss after step {found[-1].step} is {found[-1].ema:g}, and "
                f"{found[-1].raw:g} of raw weights; give the run a lower learning rate"
            )
        return [validation for validation in found if validation.is_finite]

    def backbone_at(self, step: int, *, averaged: bool) -> Backbone:
        """The network of a kept checkpoint: its EMA weights, or the raw ones.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
        """
        stem = "ema" if averaged else "weights"
        tensors = SavedTensors.of(checkpoint_of(self.folder, step), stem).read_all()
        backbone = build_backbone(self.recipe.backbone)
        backbone.load_state_dict(tensors)
        return backbone.to(self.device).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out loss after a step, by averaged and by raw weights."""

    step: int
    ema: float
    raw: float
    elapsed_s: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.ema) and math.isfinite(self.raw)


def best_step(validations: list[Validation]) -> int:
    """The step of the least held-out loss of averaged weights (arXiv 2403.03206, section 5.1).

    Raises:
        DivergedError: no step's loss is finite.
    """
    finite = [validation for validation in validations if math.isfinite(validation.ema)]
    if not finite:
        raise DivergedError(
            f"none of {len(validations)} held-out losses of averaged weights is finite, so no "
            "step is the best; give the run a lower learning rate"
        )
    return min(finite, key=lambda validation: validation.ema).step
