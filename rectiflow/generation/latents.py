"""Noise to latents: one batch of prompts through the model's field, at the times of the settings.

On the walk of a prompt between the text encoders and the autoencoder. What is the same in all
steps is computed before the first: the prompts at the backbone's width, and its modulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.flow import ResolutionShift
from rectiflow.generation.editing import EncodedEdit
from rectiflow.generation.model import Model
from rectiflow.generation.noise import NoiseSource
from rectiflow.generation.settings import SamplingSettings
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone, Network
from rectiflow.models.tabulation import tabulate
from rectiflow.sampling import (
    CountedField,
    Field,
    OnStep,
    evaluation_times,
    integrate,
    time_and_coefficients,
    times_for,
)

#: Told how often the field was evaluated for a batch of pictures.
OnEvaluated = Callable[[int], None]


def draw_latents(
    model: Model,
    conditioning: Conditioning,
    null: Conditioning,
    noise: Float[Tensor, "b c h w"],
    settings: SamplingSettings,
    *,
    source: NoiseSource | None = None,
    edit: EncodedEdit | None = None,
    on_step: OnStep | None = None,
    on_evaluated: OnEvaluated | None = None,
    places: Sequence[int] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Integrate dz/dt from noise (t = 1) to latents (t = 0); `on_step`, `places` as in `integrate`.

    `null` is of one prompt for all rows, or of one for each. A solver that adds noise has it from
    `source`, which has as many rows. With an `edit`, from a noisy picture at the time that its
    strength says.
    """
    start, solver = model.formulation.start(noise), settings.solver
    times = times_of(model, noise, settings)
    num_resting_steps = settings.guidance.num_resting_steps(settings.guidance_scale)
    if edit is None:
        times = times[num_resting_steps:]
    else:
        start, times, solver = edit.begin(
            model.backbone, solver, start, noise, times, num_resting_steps=num_resting_steps
        )
    null = null.expand(len(conditioning)) if len(null) == 1 else null
    backbone, told, told_null = _prepare(model, conditioning, null, settings, times)
    field = CountedField(
        Field(
            backbone=_network(backbone, edit),
            formulation=model.formulation,
            guidance=settings.guidance,
            guidance_scale=settings.guidance_scale,
            conditioning=told,
            null=told_null,
            weaker=_weaker_network(model, conditioning, edit),
        )
    )
    fresh = None if source is None else source.fresh
    latents = integrate(field, solver, start, times, on_step, fresh=fresh, places=places)
    if on_evaluated is not None:
        on_evaluated(field.num_evaluations)
    return latents


def times_of(
    model: Model, latents: Float[Tensor, "b c h w"], settings: SamplingSettings
) -> Float[Tensor, " n"]:
    """The whole grid of times for latents of that size, whether or not all steps are taken."""
    rows, columns = model.backbone.token_grid(latents)
    return times_for(
        model.formulation,
        settings.num_steps,
        shift=ResolutionShift(alpha=settings.shift),
        grid=settings.grid,
        num_tokens=rows * columns,
    ).to(latents.device)


def _prepare(
    model: Model,
    conditioning: Conditioning,
    null: Conditioning,
    settings: SamplingSettings,
    times: Float[Tensor, " n"],
) -> tuple[Backbone, Conditioning, Conditioning]:
    """The backbone for these prompts at these times, and the prompts as it is to be told them."""
    backbone = model.backbone
    batches = [backbone.embed(conditioning), backbone.embed(null)]
    # A solver that chooses its steps evaluates at times that nobody knows yet, and a graph would be
    # compiled anew for each drawing's tables.
    if not (settings.solver.couples_samples or model.is_compiled):
        line = torch.stack(evaluation_times(settings.solver, times)).unique()
        seen = [time_and_coefficients(model.formulation, s)[0] for s in line]
        backbone, batches = tabulate(backbone, batches, torch.cat(seen))
    return backbone, batches[0], batches[1]


def _network(backbone: Backbone, edit: EncodedEdit | None) -> Network:
    return backbone if edit is None else edit.network(backbone)


def _weaker_network(
    model: Model, conditioning: Conditioning, edit: EncodedEdit | None
) -> Network | None:
    """The weaker model's network, which is told the prompts at its own width."""
    if model.weaker is None:
        return None
    weaker = model.weaker.backbone
    network, prompts = _network(weaker, edit), weaker.embed(conditioning)
    return lambda z_t, t, _: network(z_t, t, prompts)
