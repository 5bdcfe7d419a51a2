"""A training run as one value: everything that decides which weights come out.

On the walk of a sample: `recipes` make it, the loop follows it, the run folder and every
checkpoint carry it as `recipe.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rectiflow.base.config import LATER, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.flow import EpsPrediction, Formulation, ResolutionShift, rectified_flow
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.precision import Precision
from rectiflow.sampling import SamplingDefaults
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.ema import EmaConfig
from rectiflow.training.fine_tuning import ExportLayout, LoraTraining, PriorPreservation
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recompute import Recompute
from rectiflow.training.routing import TokenRouting
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.spikes import SpikeGuard

# What a continued run may change: when to look at it and when to stop, and how, in which portions,
# a batch is computed; never what is computed.
CHANGEABLE = (
    "name",
    "max_steps",
    "micro_batch",
    "recompute",
    "compile_blocks",
    "log_every",
    "validate_every",
    "diagnose_every",
    "checkpoint_every",
    "keep_last",
    "sample_every",
    "sample_prompts",
    "sampling",
)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """All settings of a training run. Every `*_every` counts optimizer steps; 0 means never.

    `batch_size` samples make an optimizer step, whatever the number of processes, among which they
    divide evenly. With `micro_batch` each process takes its share through the network so many
    at a time, which costs less memory and gives the same mean. `recompute` says what the blocks do
    again in the backward pass instead of keeping it, `compile_blocks` that they run as compiled
    graphs (`training.recompute`, `models.compilation`).

    `shift` moves the formulation's times in training, validation and sampling alike. With
    `stratified_times` the times of any neighbouring samples are spread evenly over the sampler's
    quantiles instead of drawn independently: same density, less scatter of the loss.
    `encoder_dropout` is the probability in [0, 1] with which each text encoder is left out of
    each sample, independently (arXiv 2403.03206, appendix B.3); `pooled_dropout` that with which
    the pooled vector is, whatever encoders are there: it is quicker to learn from than the tokens,
    and a model that always has it hardly reads them. `caption_mix` gives the weight of
    each caption variant of the store; without it all weigh the same. `empty_prompt` is the
    probability that a sample shows the empty prompt instead, so that guidance, which contrasts
    with it, meets something the model has learned. `num_validation` samples are held out.
    `spikes` says when a run goes back and leaves batches out; by default never.
    Three ways to learn faster are off by default: `contrast` in [0, 1) is the weight with which an
    output is driven from what another sample asks for, its neighbour in the batch (arXiv
    2506.05350; the paper takes 0.05). `routing` sends some of the image tokens past some of the
    blocks. `alignment` teaches hidden tokens what an image encoder says of the picture; the store
    needs features for it (`rectiflow encode --features`). Held-out losses are without all three.
    A step of `diagnose_every` also tells what goes on inside the blocks (`training.diagnosis`).
    `start_from` names the model whose averaged weights are the first ones, instead of random ones:
    a shipped model, the folder of a run or model, or released weights; its shapes are `backbone`'s,
    but positions of a model of ours may differ, as they have no weights. With `add_qk_norm` that
    model has no QK-norm and `backbone` does: the norms are added (`training.start_from`). With
    `lora` only low-rank updates of it are trained. `prior` mixes pictures of what the model draws
    already into every batch. `export_layout` is that of the run's `model/`; where it is a released
    one, the position grid of `start_from` is kept too. `resolution_px` is that of the store, where
    positions and shift are meant for one; by default any will do. `sampling` is how sample
    pictures are drawn, and the finished model unless asked otherwise.
    """

    name: str
    seed: int = 0
    backbone: BackboneConfig
    start_from: str | None = None
    lora: LoraTraining | None = field(default=None, metadata=LATER)
    prior: PriorPreservation | None = field(default=None, metadata=LATER)
    export_layout: ExportLayout = field(default="own", metadata=LATER)
    add_qk_norm: bool = field(default=False, metadata=LATER)
    resolution_px: int | None = field(default=None, metadata=LATER)
    formulation: Formulation = field(default_factory=rectified_flow)
    shift: ResolutionShift = field(default_factory=ResolutionShift)
    stratified_times: bool = False
    batch_size: int = 64
    micro_batch: int | None = field(default=None, metadata=LATER)
    recompute: Recompute = field(default="none", metadata=LATER)
    compile_blocks: bool = field(default=False, metadata=LATER)
    max_steps: int
    optimizer: AdamW | Muon = field(default_factory=AdamW)
    schedule: Trapezoid = field(default_factory=Trapezoid)
    gradient_clip: float = 1.0
    spikes: SpikeGuard = field(default=SpikeGuard(), metadata=LATER)
    contrast: float = field(default=0.0, metadata=LATER)
    alignment: RepresentationAlignment = field(default=RepresentationAlignment(), metadata=LATER)
    routing: TokenRouting = field(default=TokenRouting(), metadata=LATER)
    ema: EmaConfig = field(default_factory=EmaConfig)
    precision: Precision = "auto"
    encoder_dropout: float = 0.464
    pooled_dropout: float = field(default=0.0, metadata=LATER)
    caption_mix: dict[str, float] | None = None
    empty_prompt: float = 0.05
    num_validation: int = 256
    log_every: int = 20
    validate_every: int = 500
    diagnose_every: int = field(default=0, metadata=LATER)
    checkpoint_every: int = 500
    keep_last: int = 2
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        if self.seed not in range(2**63):
            raise ConfigError(f"seed is {self.seed}; give a whole number from 0 to {2**63 - 1}")
        for name in ("encoder_dropout", "pooled_dropout", "empty_prompt"):
            probability = getattr(self, name)
            if not 0.0 <= probability <= 1.0:
                raise ConfigError(f"{name} is {probability}; give a probability from 0 to 1")
        self.sampling.check_shift(self.shift)
        if self.spikes.is_on and self.checkpoint_every == 0:
            raise ConfigError(
                "spikes.threshold is set and checkpoint_every is 0; after a spike a run goes back "
                "to a checkpoint, so let it make some"
            )
        if self.lora is not None and self.start_from is None:
            raise ConfigError(
                "lora is set and start_from is not; say which model the LoRA changes (start_from)"
            )
        if self.prior is not None:
            self.prior.count_in(self.batch_size)  # says what is wrong with it
        if self.add_qk_norm and (self.start_from is None or not self.backbone.use_qk_norm):
            raise ConfigError(
                "add_qk_norm adds the norms of backbone.use_qk_norm to the model of start_from; "
                "set both, or leave it out"
            )
        if not 0.0 <= self.contrast < 1.0:
            raise ConfigError(
                f"contrast is {self.contrast}; give a weight from 0 to below 1, such as 0.05"
            )
        if self.contrast and isinstance(self.formulation.prediction, EpsPrediction):
            raise ConfigError(
                f"contrast is {self.contrast}, but the formulation {self.formulation} asks for the "
                "noise, and another sample's noise says nothing of its picture; leave it out"
            )
        if self.routing.is_on and self.routing.last >= self.backbone.depth - 1:
            raise ConfigError(
                f"routing.last is {self.routing.last}, but of {self.backbone.depth} blocks the "
                f"last ({self.backbone.depth - 1}) needs all tokens; end the route before it"
            )
        if self.alignment.is_on:
            self._refuse_unfit_alignment()
        if self.compile_blocks and (self.alignment.is_on or self.routing.is_on):
            raise ConfigError(
                "compile_blocks is set together with alignment or routing, which reach between the "
                "blocks, where compiled graphs are closed; leave out one of them"
            )
        if not 0.0 < self.gradient_clip < math.inf:
            raise ConfigError(
                f"gradient_clip is {self.gradient_clip}; give a finite norm above 0 "
                "(a large one, such as 1e9, clips nothing)"
            )

    def _refuse_unfit_alignment(self) -> None:
        block, depth = self.alignment.block, self.backbone.depth
        if block >= depth:
            raise ConfigError(
                f"alignment.block is {block}, but the backbone's blocks count from 0 to {depth - 1}"
            )
        if self.routing.is_on and self.routing.first <= block < self.routing.last:
            raise ConfigError(
                f"alignment.block is {block}, where tokens are missing that pass by the blocks "
                f"{self.routing.first} to {self.routing.last} (routing); choose a block outside, "
                "or the last of them"
            )
        if self.lora is not None or self.prior is not None:
            raise ConfigError(
                "alignment.weight is set together with lora or prior; alignment is for training a "
                "model, not for teaching a finished one a subject: leave it out"
            )


_LEAST = {
    "batch_size": 1,
    "micro_batch": 1,
    "max_steps": 1,
    "num_validation": 0,
    "log_every": 1,
    "validate_every": 0,
    "diagnose_every": 0,
    "checkpoint_every": 0,
    "keep_last": 1,
    "sample_every": 0,
}


def refuse_uneven(recipe: TrainRecipe, num_processes: int) -> None:
    """Pass if the batch divides among the processes, and each share into micro-batches.

    With `contrast`, also if samples that go through the network together make pairs.

    Raises:
        ConfigError: it does not.
    """
    if recipe.batch_size % num_processes:
        raise ConfigError(
            f"batch_size {recipe.batch_size} does not divide among {num_processes} processes; "
            "start a number of processes that divides it, or choose a multiple"
        )
    share, micro_batch = recipe.batch_size // num_processes, recipe.micro_batch
    if micro_batch is not None and share % micro_batch:
        raise ConfigError(
            f"micro_batch {micro_batch} does not divide the {share} samples that each of "
            f"{num_processes} processes takes of batch_size {recipe.batch_size}; choose a divisor "
            f"of {share}"
        )
    at_once, name = micro_batch or share, "micro_batch" if micro_batch else "batch_size"
    if recipe.contrast and at_once % 2:
        raise ConfigError(
            f"with contrast samples go through the network in pairs, and {name} leaves "
            f"{at_once} at once for each of {num_processes} processes; choose it so that they are "
            "even in number"
        )


def differences(saved: TrainRecipe, given: TrainRecipe) -> list[str]:
    """What keeps a run of `saved` from going on as `given`, one phrase per differing setting.

    The settings in `CHANGEABLE` are not compared.
    """
    ours, theirs = to_json(saved, whole=True), to_json(given, whole=True)
    for name in CHANGEABLE:
        del ours[name], theirs[name]
    return [
        f"{path} is {before!r} in the run and {after!r} in the recipe"
        for path, before, after in differing_settings(ours, theirs)
    ]


def differing_settings(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted path and both values of each place where two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.get("kind") != after.get("kind"):
            yield f"{path}.kind".lstrip("."), before.get("kind"), after.get("kind")
            return
        for key in before | after:
            yield from differing_settings(before.get(key), after.get(key), f"{path}.{key}")
    elif before != after:
        yield path.lstrip("."), before, after
