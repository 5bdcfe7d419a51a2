"""What a run will need before it starts: memory, operations, time, money.

`rectiflow plan` prints it. Memory and operations follow from the recipe by formula
(`models.activations`, `models.flops`); time from them and an assumed share of the devices' peak, or
from a short measurement here. `benchmarks/planner.py` compares the prediction with measurements.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from rectiflow.base import philox
from rectiflow.base.errors import ConfigError
from rectiflow.data.records import Batch
from rectiflow.models.activations import Activations, Arithmetic, activations_of, weight_copies
from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.flops import InputSize, forward_flops, num_image_tokens, num_parameters
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.feed_forward import MLP_RATIO
from rectiflow.models.lora import add_lora
from rectiflow.models.mmdit import MMDiTConfig, MMDiTXConfig
from rectiflow.models.precision import compute_dtype
from rectiflow.models.published.stored import StoredTensor
from rectiflow.training.accelerators import Accelerator, accelerator
from rectiflow.training.alignment import NUM_LAYERS, Projector
from rectiflow.training.calibration import time_steps
from rectiflow.training.feed import Feed
from rectiflow.training.meter import input_size, routed_flops, step_flops
from rectiflow.training.optimizers import trainable
from rectiflow.training.recipe import TrainRecipe, refuse_uneven
from rectiflow.training.start_from import FirstWeights
from rectiflow.training.state import TrainState
from rectiflow.training.validation import LEVELS, portion_size

#: The share of a device's peak that a plan assumes unless told otherwise.
ASSUMED_MFU = 0.4
_DEVICES = re.compile(r"(?:([1-9]\d{0,5})x)?(.+)")


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A number of equal accelerators."""

    number: int
    kind: Accelerator

    @classmethod
    def parse(cls, text: str) -> Fleet:
        """From "8xH100", or "H100" for one.

        Raises:
            ConfigError: it is not of that form, or the device is not known.
        """
        found = _DEVICES.fullmatch(text.strip())
        if found is None:
            raise ConfigError(f"devices are {text!r}; give a number and a kind, such as 8xH100")
        return cls(number=int(found[1] or 1), kind=accelerator(found[2]))


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each device. Weights are the float32 master weights; `weight_copies` those that
    matrix products in 16 bits read, on several devices of two blocks at a time.

    `activations` are kept for the backward pass, `working` is what it needs for itself in a block,
    which includes what it computes again; `update` is what the optimizer's step needs for itself.
    `is_accumulated` says that a step takes several micro-batches.
    """

    weights: int
    ema: int
    optimizer: int
    gradients: int
    weight_copies: int
    activations: int
    working: int
    update: int
    is_accumulated: bool

    @property
    def standing(self) -> int:
        """What is held all the time."""
        return self.weights + self.ema + self.optimizer

    @property
    def peak(self) -> int:
        """The most at any moment.

        Gradients come into being while activations are let go, so that the largest moment is
        either the begin of the backward pass or the step after its end. From the second
        micro-batch on, gradients are there at the begin already.
        """
        begin = self.weight_copies + self.activations + self.working
        if self.is_accumulated:
            begin += self.gradients
        return self.standing + max(begin, self.gradients + self.update)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run of `recipe` on samples of `size`.

    `step_s` and `validation_s` are seconds of one step and of one validation; `basis` says where
    they come from. `flops_per_step` are the model's own, over all devices; what is computed again
    is not among them, but takes its time. Each copy of the state is cut into `num_parts`.
    """

    recipe: TrainRecipe
    size: InputSize
    fleet: Fleet | None
    dtype: torch.dtype
    num_parameters: int
    memory: MemoryPlan
    flops_per_step: int
    step_s: float
    validation_s: float
    basis: str
    num_parts: int = 1

    @property
    def num_samples(self) -> int:
        """Pictures shown to the network over the whole run, repeats included."""
        return self.recipe.max_steps * self.recipe.batch_size

    @property
    def total_s(self) -> float:
        """Seconds of all steps and validations; checkpoints and sample pictures not counted."""
        recipe = self.recipe
        every = recipe.validate_every
        num_validations = math.ceil(recipe.max_steps / every) if every else 0
        return recipe.max_steps * self.step_s + num_validations * self.validation_s

    @property
    def does_fit(self) -> bool | None:
        """Whether the memory suffices; None for this machine, whose memory others use too."""
        return None if self.fleet is None else self.memory.peak <= self.fleet.kind.memory_bytes


def plan_for(
    recipe: TrainRecipe,
    size: InputSize,
    fleet: Fleet,
    *,
    mfu: float = ASSUMED_MFU,
    shard_over: int | None = None,
) -> Plan:
    """A plan for accelerators, with an assumed MFU.

    Each copy of the state is cut among `shard_over` of them, by default all.

    Raises:
        ConfigError: the batch does not divide among the devices, the devices into copies, or the
            latents into patches.
    """
    dtype = torch.float32 if recipe.precision == "fp32" else torch.bfloat16
    peak = fleet.kind.peak_flops(dtype)
    assert peak is not None
    flops = recipe.batch_size * step_flops(recipe, size)
    again = recipe.batch_size * _recomputed_flops(recipe, size)
    speed = fleet.number * peak * mfu
    num_parts = fleet.number if shard_over is None else shard_over
    memory = memory_of(
        recipe, size, dtype, device_type="cuda", num_devices=fleet.number, num_parts=num_parts
    )
    return Plan(
        recipe=recipe,
        size=size,
        fleet=fleet,
        dtype=dtype,
        num_parameters=num_parameters(recipe.backbone),
        memory=memory,
        flops_per_step=flops,
        step_s=(flops + again) / speed,
        validation_s=_validation_flops(recipe, size, fleet.number) / speed,
        basis=f"an assumed {mfu:.0%} of {peak / 1e12:,.0f} dense TFLOP/s a device",
        num_parts=num_parts,
    )


def plan_here(recipe: TrainRecipe, size: InputSize, *, seconds: float = 10.0) -> Plan:
    """A plan for this machine, whose training step is timed on random numbers for `seconds`.

    Raises:
        ConfigError: the latents do not divide into patches, or do not fit the recipe; or a step
            does not fit into this machine's memory, so that none can be timed.
    """
    dtype = compute_dtype(recipe.precision)
    memory = memory_of(recipe, size, dtype, device_type="cpu")
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory.peak > here:
        raise ConfigError(
            f"{recipe.name} needs {memory.peak / 1e9:,.0f} GB and this machine has "
            f"{here / 1e9:,.0f} GB, so that no step can be timed here; plan for other devices "
            "(--devices 8xH100), or take a smaller --micro-batch or --batch-size"
        )
    flops = recipe.batch_size * step_flops(recipe, size)
    batch = random_batch(recipe, size)
    step_s = time_steps(_first_state(recipe), lambda step: batch, recipe, seconds)
    return Plan(
        recipe=recipe,
        size=size,
        fleet=None,
        dtype=dtype,
        num_parameters=num_parameters(recipe.backbone),
        memory=memory,
        flops_per_step=flops,
        step_s=step_s,
        validation_s=_validation_flops(recipe, size) * step_s / flops,
        basis=f"{flops / step_s / 1e9:,.1f} GFLOP/s measured here for {seconds:.0f} s",
    )


def memory_of(
    recipe: TrainRecipe,
    size: InputSize,
    dtype: torch.dtype,
    *,
    device_type: str,
    num_devices: int = 1,
    num_parts: int | None = None,
) -> MemoryPlan:
    """Memory on each of `num_devices`, `num_parts` of which (by default all) share a copy of state.

    Raises:
        ConfigError: the batch does not divide among the devices, the devices into copies, or the
            latents into patches; or the backbone cannot have the LoRA.
    """
    refuse_uneven(recipe, num_devices)
    num_parts = num_devices if num_parts is None else num_parts
    if num_parts < 1 or num_devices % num_parts:
        raise ConfigError(
            f"--shard-over {num_parts} does not divide the {num_devices} devices; give the number "
            "of devices that share one copy of the state, such as those of one machine"
        )
    share = recipe.batch_size // num_devices
    num_at_once = recipe.micro_batch or share
    backbone = _network(recipe)
    models: list[nn.Module] = [backbone]
    if recipe.alignment.is_on:
        with torch.device("meta"):
            models.append(Projector(recipe.alignment, recipe.backbone.hidden_dim))
    with torch.device("meta"):
        optimizers = [recipe.optimizer.build(model, dtype) for model in models]
    trained = sum(p.nbytes for model in models for _, p in trainable(model))
    averaged = sum(p.nbytes for _, p in trainable(backbone))
    copies = _copies(recipe, backbone, dtype)
    working = _working_bytes(recipe, size, dtype)
    whole_gradients = 0
    if num_devices > 1:
        block = _largest_block(backbone)
        # Gathered for a block while the one before it is computed; and a block's gradients before
        # they are cut, beside the float32 numbers that the devices add up.
        copies = 2 * block * dtype.itemsize
        whole_gradients = block * (dtype.itemsize + torch.float32.itemsize)
    kept = _routed_activations(recipe, size, Arithmetic.of(dtype, device_type))
    activations, again = _kept_and_again(kept, recipe)
    activations += _projector_activations(recipe, size, dtype)
    return MemoryPlan(
        weights=_share(sum(p.nbytes for m in models for p in m.parameters()), num_parts),
        ema=_share(averaged * recipe.ema.num_averages, num_parts),
        optimizer=_share(sum(t.nbytes for o in optimizers for t in o.state().values()), num_parts),
        gradients=_share(trained, num_parts),
        weight_copies=copies,
        activations=num_at_once * activations,
        working=num_at_once * (working + again) + whole_gradients,
        update=max(optimizer.working_bytes(num_devices) for optimizer in optimizers),
        is_accumulated=num_at_once < share,
    )


def largest_input(feed: Feed) -> InputSize:
    """One sample of the feed's bucket with the most tokens, which memory must be there for."""
    _, height, width = max(feed.facts.latent_shapes, key=lambda shape: shape[1] * shape[2])
    return replace(input_size(feed.batch_at(0)), height=height, width=width)


def random_batch(recipe: TrainRecipe, size: InputSize) -> Batch:
    """A batch of the recipe's shapes that holds random numbers.

    Raises:
        ConfigError: there are fewer than two text tokens: CLIP and T5 have one each at least.
    """
    if size.num_text < 2:
        raise ConfigError(f"{size.num_text} text tokens; CLIP and T5 have at least one each")
    b, config = recipe.batch_size, recipe.backbone
    num_clip = max(1, min(size.num_text - 1, getattr(config, "num_clip_tokens", None) or 1))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(b, *shape, generator=generator)

    indices = torch.arange(b)
    return Batch(
        x0_mean=random(config.latent_channels, size.height, size.width),
        x0_logvar=random(config.latent_channels, size.height, size.width) - 4.0,
        encoded_text={
            "clip_l.context": random(num_clip, 1),
            "clip_l.pooled": random(1),
            "clip_g.context": random(num_clip, 1),
            "clip_g.pooled": random(config.pooled_dim - 1),
            "t5.context": random(size.num_text - num_clip, config.context_dim),
        },
        features=_random_features(recipe, size, generator),
        keys=philox.keys_for(0, "plan", 0, indices=indices),
        indices=indices,
        positions=indices,
    )


def _random_features(
    recipe: TrainRecipe, size: InputSize, generator: torch.Generator
) -> torch.Tensor | None:
    if not recipe.alignment.is_on:
        return None
    p = recipe.backbone.patch_size
    shape = (recipe.alignment.feature_dim, size.height // p, size.width // p)
    return torch.randn(recipe.batch_size, *shape, generator=generator)


def _network(recipe: TrainRecipe) -> Backbone:
    """What a run trains, without memory for its weights."""
    with torch.device("meta"):
        backbone = build_backbone(recipe.backbone)
    if recipe.lora is None:
        return backbone
    backbone.to(recipe.lora.base_dtype)
    # "meta" has no generators; the updates are small.
    add_lora(backbone, recipe.lora.rank, torch.Generator())
    return backbone.to("meta")


def _first_state(recipe: TrainRecipe) -> TrainState:
    """A state to time; random weights take as long as those that a LoRA changes."""
    if recipe.lora is None:
        return TrainState.start(recipe)
    model = build_backbone(recipe.backbone)
    model.initialize(torch.Generator().manual_seed(0))
    weights = {name: StoredTensor.of(value) for name, value in model.state_dict().items()}
    first = FirstWeights(name="random", sha256="", tensors=weights)
    return TrainState.start(replace(recipe, add_qk_norm=False), first)


def _validation_flops(recipe: TrainRecipe, size: InputSize, num_devices: int = 1) -> int:
    """The raw weights and every average, at every level; with what devices repeat in vain."""
    in_a_round = portion_size(recipe) * num_devices
    num_samples = math.ceil(recipe.num_validation / in_a_round) * in_a_round
    num_passes = (1 + recipe.ema.num_averages) * len(LEVELS) * num_samples
    return num_passes * forward_flops(recipe.backbone, size)


def _recomputed_flops(recipe: TrainRecipe, size: InputSize) -> int:
    """Of one sample; where products are kept, what is left to compute again counts as nothing."""
    if recipe.recompute != "blocks":
        return 0
    return routed_flops(recipe.backbone, recipe.routing, size)


def _kept_and_again(kept: Activations, recipe: TrainRecipe) -> tuple[int, int]:
    """Bytes kept for one sample, and those of a block that is computed again beside them."""
    match recipe.recompute:
        case "none":
            return kept.around + kept.blocks, 0
        case "products":
            return kept.around + kept.inputs + kept.products, kept.largest_rest
        case "blocks":
            return kept.around + kept.inputs, kept.largest_block


def _routed_activations(
    recipe: TrainRecipe, size: InputSize, arithmetic: Arithmetic
) -> Activations:
    """Of one sample; some of its image tokens pass by the blocks of the recipe's route."""
    config, routing = recipe.backbone, recipe.routing
    lora_rank = None if recipe.lora is None else recipe.lora.rank
    kept = activations_of(config, size, arithmetic, lora_rank=lora_rank)
    if not routing.is_on:
        return kept
    num_image = num_image_tokens(config, size)
    p = config.patch_size
    # Blocks know the number of tokens alone: one row of patches has as many as any grid.
    fewer = replace(size, height=p, width=p * routing.num_kept(num_image))
    whole = replace(size, height=p, width=p * num_image)
    saved_blocks, saved_inputs, saved_products = 0, 0, 0
    for place in range(routing.first, routing.last + 1):
        for sign, some in ((1, whole), (-1, fewer)):
            like = _like_block(config, place)
            block = activations_of(like, some, arithmetic, lora_rank=lora_rank)
            # None of them is the last, so that each is as large as its like gets.
            saved_blocks += sign * block.largest_block
            saved_products += sign * (block.largest_block - block.largest_rest)
            saved_inputs += sign * block.inputs // config.depth
    return replace(
        kept,
        blocks=kept.blocks - saved_blocks,
        inputs=kept.inputs - saved_inputs,
        products=kept.products - saved_products,
    )


def _like_block(config: BackboneConfig, place: int) -> BackboneConfig:
    """A backbone whose largest block is as the one at `place`: with a second attention, or none."""
    if not isinstance(config, MMDiTXConfig) or place < config.num_second_attentions:
        return config
    shared = {f.name: getattr(config, f.name) for f in fields(MMDiTConfig)}
    return MMDiTConfig(**shared)


def _projector_activations(recipe: TrainRecipe, size: InputSize, dtype: torch.dtype) -> int:
    """Bytes that an alignment keeps for one sample: its projector's, and of the cosines."""
    alignment = recipe.alignment
    if not alignment.is_on:
        return 0
    # Of each token itself, of each layer but the last before and after its SiLU, and the result;
    # then, in float32, the result and the features as they are compared.
    inner = 2 * (NUM_LAYERS - 1) * alignment.projector_dim
    narrow = recipe.backbone.hidden_dim + inner + alignment.feature_dim
    each = dtype.itemsize * narrow + 4 * 4 * alignment.feature_dim
    return num_image_tokens(recipe.backbone, size) * each


def _copies(recipe: TrainRecipe, backbone: Backbone, dtype: torch.dtype) -> int:
    """Bytes of the weights in the type that they are multiplied in, where it is another one."""
    if recipe.lora is None:
        return weight_copies(recipe.backbone, dtype)
    if recipe.lora.base_dtype == dtype:
        return 0
    # Only of frozen maps that a gradient passes through; none does those of the conditioning.
    return dtype.itemsize * sum(
        module.weight.numel()
        for name, module in backbone.blocks.named_modules()
        if isinstance(module, nn.Linear) and "adaLN_modulation" not in name
    )


def _working_bytes(recipe: TrainRecipe, size: InputSize, dtype: torch.dtype) -> int:
    """Gradients of the feed-forward network's hidden layer before and after its activation."""
    p = recipe.backbone.patch_size
    num_tokens = (size.height // p) * (size.width // p)
    return 2 * MLP_RATIO * num_tokens * recipe.backbone.hidden_dim * dtype.itemsize


def _largest_block(backbone: Backbone) -> int:
    return max(sum(p.numel() for p in block.parameters()) for block in backbone.blocks)


def _share(num_bytes: int, num_devices: int) -> int:
    return -(-num_bytes // num_devices)
