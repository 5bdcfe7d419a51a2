"""One training step: a batch of the store in, weights moved by one optimizer step.

On the walk of a sample: loader -> here -> `flow.loss` -> backbone -> optimizer -> EMA. All random
numbers are functions of the batch's keys, so a step depends on (state, batch, recipe) alone.
Source: arXiv 2403.03206, sections 3.1 and 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rectiflow.base import philox
from rectiflow.base.seeds import derive_seed
from rectiflow.data.records import Batch
from rectiflow.distributed.sharding import own_parts, whole
from rectiflow.flow import FlowLoss, flow_matching_loss
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.image_tokens import route_image_tokens, watch_image_tokens
from rectiflow.models.precision import autocast
from rectiflow.models.text.encoded import ENCODERS, EncodedText, assemble
from rectiflow.training.alignment import Projector, similarity
from rectiflow.training.optimizers import rate_of
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState

# Philox streams of a sample's key. The loader draws its own (captions) from streams below 16.
NOISE_STREAM = 16
CHOICE_STREAM = 17
ROUTE_STREAM = 18
POOLED_STREAM = 19


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A batch after all random choices: what the loss is a function of."""

    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    t: Float[Tensor, " b"]
    conditioning: Conditioning
    weights: Float[Tensor, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The flow's loss before the update and the gradient's norm before clipping.

    `similarity` is the mean cosine of a step that is aligned; its part of what is minimised is not
    in `loss`.
    """

    loss: float
    gradient_norm: float
    similarity: float | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def draw(batch: Batch, recipe: TrainRecipe) -> Draw:
    """Choose noise, time and dropped text of each sample from its key."""
    uniforms = philox.uniform(batch.keys, 1 + len(ENCODERS), stream=CHOICE_STREAM)
    levels = uniforms[:, 0]
    if recipe.stratified_times:
        levels = philox.even_uniform(batch.positions, derive_seed(recipe.seed, "times"))
    x0, eps = posterior_and_noise(batch, batch.keys, stream=NOISE_STREAM)
    t = recipe.formulation.timesteps.from_uniform(levels)
    conditioning = condition(batch, uniforms[:, 1:] >= recipe.encoder_dropout)
    if recipe.pooled_dropout:
        keep = philox.uniform(batch.keys, 1, stream=POOLED_STREAM) >= recipe.pooled_dropout
        conditioning = replace(conditioning, pooled=conditioning.pooled * keep)
    return Draw(
        x0=x0,
        eps=eps,
        t=recipe.shift.along(recipe.formulation.path, t),
        conditioning=conditioning,
        weights=batch.weights,
    )


def posterior_and_noise(
    batch: Batch, keys: Int[Tensor, " b"], *, stream: int
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Latents x0 drawn from the autoencoder's posterior, and the flow's noise eps; float32."""
    normals = philox.normal(keys, (2, *batch.x0_mean.shape[1:]), stream=stream)
    std = torch.exp(0.5 * batch.x0_logvar.float())
    return torch.addcmul(batch.x0_mean.float(), std, normals[:, 0]), normals[:, 1]


def condition(batch: Batch, keep: Bool[Tensor, "b 3"] | None) -> Conditioning:
    """The batch's prompts as the backbone sees them; `keep` has a column per text encoder."""
    chosen: dict[str, Tensor] | None = None
    if keep is not None:
        chosen = {name: keep[:, i] for i, name in enumerate(ENCODERS)}
    return assemble(EncodedText.from_columns(batch.encoded_text).to(dtype=torch.float32), chosen)


def forward(
    backbone: torch.nn.Module, example: Draw, recipe: TrainRecipe, *, contrast: float = 0.0
) -> FlowLoss:
    """The loss of one drawn batch; matrix products in the recipe's precision."""
    with autocast(recipe.precision, example.x0.device):
        loss = flow_matching_loss(
            backbone,
            recipe.formulation,
            example.x0,
            example.eps,
            example.t,
            example.conditioning,
            contrast=contrast,
        )
    return loss if example.weights is None else loss.weighted(example.weights)


def training_loss(
    backbone: Backbone, projector: Projector | None, batch: Batch, recipe: TrainRecipe
) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
    """The flow's loss of a batch as training sees it: with contrast, and tokens that are routed.

    With a projector also how alike its hidden tokens and the batch's features are.
    """
    example = draw(batch, recipe)
    rows, columns = backbone.token_grid(example.x0)
    num_image, routing = rows * columns, recipe.routing
    with ExitStack() as stack:
        if routing.is_on:
            kept = routing.choose(batch.keys, num_image, stream=ROUTE_STREAM)
            stack.enter_context(
                route_image_tokens(backbone, routing.first, routing.last, kept, num_image)
            )
        if projector is None:
            return forward(backbone, example, recipe, contrast=recipe.contrast).loss, None
        seen = stack.enter_context(watch_image_tokens(backbone, recipe.alignment.block, num_image))
        loss = forward(backbone, example, recipe, contrast=recipe.contrast).loss
    assert batch.features is not None  # the feed has refused a store without
    with autocast(recipe.precision, example.x0.device):
        return loss, similarity(projector, seen[0], batch.features, (rows, columns))


def accumulate_gradient(
    backbone: Backbone, projector: Projector | None, batch: Batch, recipe: TrainRecipe
) -> tuple[float, float]:
    """Add the gradient of a batch's mean loss, `micro_batch` rows at a time.

    With a projector hidden tokens are aligned too. Returns the flow's mean loss, and the mean
    similarity (0 where nothing is aligned).
    """
    size = recipe.micro_batch or len(batch)
    losses: list[Tensor] = []
    cosines: list[Tensor] = []
    for first in range(0, len(batch), size):
        rows = batch[first : first + size]
        share = len(rows) / len(batch)
        objective, cosine = training_loss(backbone, projector, rows, recipe)
        losses.append((share * objective).detach())
        if cosine is not None:
            cosines.append((share * cosine).detach())
            objective = objective - recipe.alignment.weight * cosine
        (share * objective).backward()
    # Read at the end, so that a GPU does not wait for the processor between micro-batches.
    return sum(each.item() for each in losses), sum(each.item() for each in cosines)


def train_step(
    state: TrainState,
    batch: Batch,
    recipe: TrainRecipe,
    *,
    before_update: Callable[[], None] | None = None,
) -> StepResult:
    """One optimizer step in place. A non-finite loss or gradient leaves `state` as it was.

    Each process of the state's world calls it with its own rows, an equal share of the batch; loss
    and gradient are those of all rows. `before_update` is called when all gradients are there and
    nothing has changed yet; it looks.
    """
    aligner = state.aligner_at(recipe)
    projector = None if aligner is None else aligner.projector
    named = state.backbone.named_parameters()
    projecting = () if projector is None else projector.parameters()
    # What a rate of 0 freezes has no say in how far the others move.
    rates = recipe.optimizer.rates
    moving = [p for name, p in named if not rates or rate_of(name, rates) > 0.0]
    moving += projecting
    for parameter in chain(state.backbone.parameters(), moving):
        parameter.grad = None
    loss, cosine = accumulate_gradient(
        state.backbone, projector, batch.to(state.world.device), recipe
    )
    gradients = [p.grad for p in moving if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients, foreach=True))
    # All go by the same numbers, so that all clip, or stop, alike.
    seen = state.world.gather(loss, norm.item(), cosine)
    result = StepResult(
        loss=seen[:, 0].mean().item(),
        gradient_norm=seen[0, 1].item(),
        similarity=None if aligner is None else seen[:, 2].mean().item(),
    )
    if not result.is_finite:
        return result
    if before_update is not None:
        before_update()
    if result.gradient_norm > recipe.gradient_clip:
        torch._foreach_mul_(  # pyright: ignore[reportPrivateUsage]
            own_parts(gradients), recipe.gradient_clip / result.gradient_norm
        )
    factor = recipe.schedule.factor(state.step, recipe.max_steps)
    state.optimizer.step(factor)
    if aligner is not None:
        aligner.optimizer.step(factor)
    state.step += 1
    state.update_averages()
    state.loss_window.append(result.loss)
    return result
