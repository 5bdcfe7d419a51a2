"""All that a run needs to go on as if it had never stopped.

On the walk of a sample: the loop owns it, `step` advances it, `checkpoint` stores it. Random
numbers are functions of (seed, epoch, sample), and the learning rate and the loader's order are
functions of the step, so `step` and the recipe stand for generators, schedule and loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from rectiflow.base.errors import CheckpointError
from rectiflow.base.seeds import derive_seed
from rectiflow.distributed.sharding import Piece, fill, hold_as, own_part, piece_of, shard, whole
from rectiflow.distributed.world import ALONE, World
from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.compilation import compile_blocks
from rectiflow.models.frame import Backbone
from rectiflow.models.lora import add_lora, lora_rank, lora_tensors
from rectiflow.models.precision import compute_dtype
from rectiflow.training.alignment import Aligner, Projector
from rectiflow.training.ema import Ema
from rectiflow.training.optimizers import Optimizer
from rectiflow.training.power_profile import PowerProfile
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.recompute import recompute_blocks
from rectiflow.training.spikes import SpikeMemory
from rectiflow.training.start_from import FirstWeights
from rectiflow.training.tensor_files import SavedTensors


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One process's part of a training state, as files hold it, and the counters.

    `pieces` are those of all tensors by file stem, on the CPU: part number `part`, counted from 0,
    of `num_parts`. `is_copy` is False where they are the live ones, which the next step changes.
    """

    pieces: Mapping[str, Mapping[str, Piece]]
    part: int
    num_parts: int
    step: int
    elapsed_s: float
    loss_window: tuple[float, ...]
    origin: Mapping[str, Any] | None
    spikes: SpikeMemory
    is_copy: bool


@dataclass(kw_only=True)
class TrainState:
    """Weights, their averages, the optimizer and the counters; changed in place by each step.

    `ema` is the average that is used, `power_emas` are those of the recipe's `ema.sigma_rels`.
    `step` counts finished optimizer steps; `loss_window` holds the losses since the last log
    line; `elapsed_s` is the training time of all sessions so far; `origin` says which model the
    first weights came from, None where they were random. `spikes` is what the recipe's guard
    against loss spikes remembers. `world` are the processes among which weights, average and
    optimizer are cut: each holds its parts, and all the same counters.
    `aligner` is the projector of a recipe's alignment.
    `keeps_positions` says that the position grid is the model's own and belongs to its tensors.
    """

    backbone: Backbone
    ema: Ema
    power_emas: Mapping[float, Ema]
    optimizer: Optimizer
    step: int = 0
    elapsed_s: float = 0.0
    loss_window: list[float] = field(default_factory=list)
    origin: dict[str, Any] | None = None
    spikes: SpikeMemory = field(default_factory=SpikeMemory)
    world: World = ALONE
    aligner: Aligner | None = None
    keeps_positions: bool = False

    @classmethod
    def start(
        cls, recipe: TrainRecipe, first: FirstWeights | None = None, world: World = ALONE
    ) -> TrainState:
        """The state before the first step: weights drawn from the recipe's seed, or `first`.

        A recipe with `lora` needs `first`, the model that the LoRA changes.

        Raises:
            CheckpointError: `first` does not fit the recipe's backbone.
            ConfigError: the recipe's LoRA does not; or this machine cannot compile blocks.
        """
        backbone, values, positions = _plan_backbone(recipe, first)
        if world.mesh is None:
            backbone.to_empty(device=world.device)
            fill(backbone, values)
        config = recipe.ema
        ema = Ema(config.decay_at, backbone, every=config.every)
        power_emas = {s: Ema(PowerProfile(s).decay_at, backbone) for s in config.sigma_rels}
        averages = [average.model for average in (ema, *power_emas.values())]
        # Only of the network that learns, and before it is cut: its parts meet outside of graphs.
        recompute_blocks(backbone.blocks, recipe.recompute)
        if recipe.compile_blocks:
            compile_blocks(backbone.blocks, world.device)
        dtype = compute_dtype(recipe.precision, world.device)
        if world.mesh is not None:
            # Cut first, so that no process ever holds more than its parts and one whole tensor.
            for model in (backbone, *averages):
                shard(model, world.mesh, dtype)
            backbone.to_empty(device=world.device)
            fill(backbone, values)
            for model in averages:
                hold_as(model, backbone)
        positions = positions.to(world.device)
        for model in (backbone, *averages):
            model.pos_embed = positions
        return cls(
            backbone=backbone,
            ema=ema,
            power_emas=power_emas,
            optimizer=recipe.optimizer.build(backbone, dtype),
            origin=first.origin_of(recipe) if first is not None else None,
            world=world,
            aligner=_first_aligner(recipe, world, dtype) if recipe.alignment.is_on else None,
            keeps_positions=recipe.export_layout != "own",
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The live tensors by file stem, this process's parts of them: weights, ema, optimizer.

        With power-function averages also `ema_SIGMA` for each, with an aligner its own two.
        """
        tensors = {
            "weights": self._tensors_of(self.backbone),
            "ema": self._tensors_of(self.ema.model),
            "optimizer": self.optimizer.state(),
        }
        for sigma_rel, ema in self.power_emas.items():
            tensors[f"ema_{sigma_rel}"] = self._tensors_of(ema.model)
        if self.aligner is not None:
            tensors["projector"] = self.aligner.projector.state_dict()
            tensors["projector_optimizer"] = self.aligner.optimizer.state()
        return tensors

    def update_averages(self) -> None:
        """Take in the weights of the step that has been counted."""
        for ema in (self.ema, *self.power_emas.values()):
            ema.update(self.step)

    def aligner_at(self, recipe: TrainRecipe) -> Aligner | None:
        """The aligner, if the next step is to be aligned."""
        is_on = recipe.alignment.is_on_at(self.step, recipe.max_steps)
        return self.aligner if is_on else None

    def _tensors_of(self, model: nn.Module) -> dict[str, Tensor]:
        """What of a model training changes, and what a run could not find again."""
        updates = lora_tensors(model)
        if updates:
            return updates
        positions = {"pos_embed": cast(Backbone, model).pos_embed} if self.keeps_positions else {}
        return model.state_dict() | positions

    @torch.no_grad()
    def start_over(self, recipe: TrainRecipe, first: FirstWeights | None = None) -> None:
        """Be what `start` made once more, in place; the time that has passed nothing brings back.

        Raises:
            CheckpointError: as `start`; nothing has changed then.
        """
        fill(self.backbone, _plan_backbone(recipe, first)[1])
        weights = self._tensors_of(self.backbone)
        for average in (self.ema, *self.power_emas.values()):
            for name, value in self._tensors_of(average.model).items():
                own_part(value).copy_(own_part(weights[name]))
        optimizers = [self.optimizer]
        if self.aligner is not None:
            dtype = compute_dtype(recipe.precision, self.world.device)
            fresh = _first_aligner(recipe, self.world, dtype).projector.state_dict()
            for name, value in self.aligner.projector.state_dict().items():
                own_part(value).copy_(own_part(fresh[name]))
            optimizers.append(self.aligner.optimizer)
        # An optimizer that has seen nothing knows zeros alone.
        for optimizer in optimizers:
            for value in optimizer.state().values():
                own_part(value).zero_()
        self.step, self.loss_window, self.spikes = 0, [], SpikeMemory()

    def snapshot(self) -> Snapshot | None:
        """This process's part of the state; None where one of a lower rank holds the same.

        A process alone on the CPU copies nothing.
        """
        if not self.world.has_first_copy:
            return None
        is_copy = self.world.mesh is not None or self.world.device.type != "cpu"
        return Snapshot(
            pieces={
                stem: {name: self._piece(tensor, is_copy) for name, tensor in tensors.items()}
                for stem, tensors in self.tensors().items()
            },
            part=self.world.part,
            num_parts=self.world.num_parts,
            step=self.step,
            elapsed_s=self.elapsed_s,
            loss_window=tuple(self.loss_window),
            origin=self.origin,
            spikes=replace(self.spikes),
            is_copy=is_copy,
        )

    @staticmethod
    def _piece(tensor: Tensor, is_copy: bool) -> Piece:
        piece = piece_of(tensor)
        values = piece.values.detach()
        return replace(piece, values=values.to("cpu", copy=True) if is_copy else values)

    def power_averages(self) -> dict[float, dict[str, Tensor]] | None:
        """The power-function averages in one piece by sigma_rel, for the first process.

        None for the others; every process must call it.
        """
        gathered = {
            s: self._gather(self._tensors_of(ema.model)) for s, ema in self.power_emas.items()
        }
        return gathered if self.world.is_first else None

    def averaged_backbone(self) -> nn.Module | None:
        """The averaged model in one piece, for the first process; None for the others.

        Every process must call it.
        """
        if self.world.mesh is None:
            return self.ema.model
        average = self._gather(self.ema.model.state_dict())
        if not self.world.is_first:
            return None
        model = build_backbone(cast(BackboneConfig, self.backbone.config))
        rank = lora_rank(self.backbone)
        if rank is not None:
            add_lora(model, rank, torch.Generator())
        # Each in the type that it is held in.
        model.load_state_dict(average, assign=True)
        model.pos_embed.copy_(self.backbone.pos_embed)
        return model.to(self.world.device).eval().requires_grad_(False)

    def _gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU in the first process."""
        gathered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.world.is_first:
                gathered[name] = full.cpu()
        return gathered

    def load_tensors(self, saved: Mapping[str, SavedTensors]) -> None:
        """Copy this process's parts of saved tensors in, all or none.

        Raises:
            CheckpointError: a name, shape or type is not this recipe's; the text gives the first
                one.
        """
        live = self.tensors()
        for stem, own in live.items():
            refuse_unlike(saved[stem].outlines(), own, what=f"{stem}.safetensors")
        with torch.no_grad():
            for stem, own in live.items():
                for name, value in own.items():
                    piece = piece_of(value)
                    rows = None if piece.is_whole else (piece.start, len(piece.values))
                    piece.values.copy_(saved[stem].read(name, rows))


def _plan_backbone(
    recipe: TrainRecipe, first: FirstWeights | None
) -> tuple[Backbone, Iterator[tuple[str, Tensor]], Tensor]:
    """A backbone without memory, its first weights one after another, and its position grid."""
    with torch.device("meta"):
        backbone = build_backbone(recipe.backbone)
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, "backbone"))
    if first is None:
        assert recipe.lora is None
        return backbone, backbone.first_weights(generator), backbone.closed_form_positions()
    values = first.values_for(backbone, add_qk_norm=recipe.add_qk_norm)
    # Our own layout has the closed form alone; what a LoRA changes is the model as it is.
    keeps_positions = recipe.lora is not None or recipe.export_layout != "own"
    positions = first.positions_for(backbone) if keeps_positions else None
    if recipe.lora is not None:
        backbone.to(recipe.lora.base_dtype)
        add_lora(backbone, recipe.lora.rank, generator)
        values = chain(values, lora_tensors(backbone).items())
        backbone.to("meta")
    return backbone, values, backbone.closed_form_positions() if positions is None else positions


def _first_aligner(recipe: TrainRecipe, world: World, dtype: torch.dtype) -> Aligner:
    projector = Projector(recipe.alignment, recipe.backbone.hidden_dim)
    seed = derive_seed(recipe.seed, "projector")
    projector.initialize(torch.Generator().manual_seed(seed))
    if world.mesh is None:
        projector.to(world.device)
    else:
        shard(projector, world.mesh, dtype)
    return Aligner(projector=projector, optimizer=recipe.optimizer.build(projector, dtype))


def refuse_unlike(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], *, what: str) -> None:
    """Pass if names, shapes and types all agree.

    Raises:
        CheckpointError: they do not; `what` names the source in the text.
    """
    for name in own.keys() ^ saved.keys():
        side = "lacks" if name in own else "has an unknown"
        raise CheckpointError(
            f"{what} {side} tensor {name!r}: it was written for another recipe; continue with "
            "the recipe that it was trained with, or start a new run folder"
        )
    for name, value in own.items():
        found = saved[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise CheckpointError(
                f"{what}: tensor {name!r} is {found.dtype} {list(found.shape)}, this recipe needs "
                f"{value.dtype} {list(value.shape)}; continue with the recipe that it was trained "
                "with, or start a new run folder"
            )
