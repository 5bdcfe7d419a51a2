"""What a call of `Pipeline` is given, in the terms of diffusers, as inputs of a drawing.

On the walk of a prompt inside `Pipeline.__call__`, before anything is drawn.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.edit_files import Picture, edit_of
from rectiflow.generation.editing import STRENGTH, Edit
from rectiflow.generation.model import Model
from rectiflow.generation.noise import NoiseSource, noise_source, source_behind
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import encode_prompts
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling.guidance import check_guidance_scale

#: Settings that count something.
_WHOLE = {"num_steps", "height_px", "width_px"}


def resolve_settings(settings: SamplingSettings, **given: Any) -> SamplingSettings:
    """The settings with what was given in the place of theirs; None is nothing.

    A scale of guidance below 1 is 1, none at all, as diffusers takes it.

    Raises:
        ConfigError: a number is out of range or not whole, or they do not go together.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    for name in _WHOLE & changes.keys():
        try:
            changes[name] = operator.index(changes[name])
        except TypeError as error:
            raise ConfigError(f"{name}={changes[name]!r} must be a whole number") from error
    if "guidance_scale" in changes:
        check_guidance_scale(changes["guidance_scale"])
        changes["guidance_scale"] = max(1.0, changes["guidance_scale"])
    return replace(settings, **changes)


def joinable(
    conditioning: Conditioning, negative: Conditioning, settings: SamplingSettings
) -> tuple[Conditioning, Conditioning]:
    """The two as one batch can hold them.

    Raises:
        UserError: guidance needs both, and they are of different lengths.
    """
    if conditioning.last_count != negative.last_count:
        conditioning, negative = conditioning.with_all_tokens(), negative.with_all_tokens()
    found, wanted = conditioning.context.shape[1], negative.context.shape[1]
    if found != wanted and settings.guidance.uses_null(settings.guidance_scale):
        raise UserError(
            f"the prompts' embeddings have {found} tokens, those of the negative prompts (empty "
            f"ones unless given) {wanted}, and guidance needs both in one batch; give embeddings "
            "of one length, or prompt_embeds and negative_prompt_embeds of the same encoders"
        )
    return conditioning, negative


def edit_from(image: Picture | None, mask: Picture | None, strength: float | None) -> Edit | None:
    """What to draw from; None without an image.

    Raises:
        UserError: a mask or a strength came without one, or they do not suit.
    """
    if image is None:
        given = {"mask_image": mask, "strength": strength}
        if names := [name for name, value in given.items() if value is not None]:
            raise UserError(
                f"{' and '.join(names)} came without an image; give the image to start from"
            )
        return None
    return edit_of(image, mask, strength=STRENGTH if strength is None else strength)


def condition(
    model: Model,
    name: str,
    text: str | Sequence[str] | None,
    context: Tensor | None,
    pooled: Tensor | None,
) -> tuple[tuple[str | None, ...], Conditioning | None]:
    """The prompts of one kind and their conditioning; None where nothing was given.

    Raises:
        UserError: they were given twice, by halves, not at all, do not fit the model, or hold
            values that are not finite.
    """
    stem = f"{name}_embeds", f"{name.removesuffix('prompt')}pooled_prompt_embeds"
    if (context is None) != (pooled is None):
        raise UserError(f"{stem[0]} and {stem[1]} belong together; give both")
    if text is not None and context is not None:
        raise UserError(f"{name} came with {stem[0]}; give one of them")
    if context is not None and pooled is not None:
        for which, embeds in zip(stem, (context, pooled)):
            _check_tensor(which, embeds)
        config = model.backbone.config
        wanted = (config.context_dim, config.pooled_dim)
        fits = (context.ndim, pooled.ndim) == (3, 2) and len(context) == len(pooled) > 0
        if not fits or (context.shape[2], pooled.shape[1]) != wanted or not context.shape[1]:
            raise UserError(
                f"{stem[0]} {list(context.shape)} and {stem[1]} {list(pooled.shape)} do not fit "
                f"this model, whose are [n l {wanted[0]}] and [n {wanted[1]}], n and l at least 1"
            )
        for which, embeds in zip(stem, (context, pooled)):
            if not torch.isfinite(embeds).all():
                raise UserError(
                    f"{which} hold values that are not finite; look at what made them, or encode "
                    "the prompts anew"
                )
        conditioning = Conditioning(context=context, pooled=pooled)
        return (None,) * len(context), conditioning.to(model.device, torch.float32)
    if text is None:
        return (), None
    prompts = (text,) if isinstance(text, str) else tuple(text)
    if not prompts:
        raise UserError(f"{name} is an empty list; give at least one")
    return prompts, encode_prompts(model, prompts)[0]


def latents_of(given: object, latents: Tensor) -> Tensor | None:
    """Those to go on with that a callback gave for `latents`, as these are held; None for none.

    Raises:
        UserError: it gave something else, or latents of another shape.
    """
    if not isinstance(given, Mapping):
        raise UserError(
            f'the callback gave {_kind(given)}; it may give back {{"latents": …}}, {{}} or None'
        )
    if unknown := set(given) - {"latents"}:
        raise UserError(f"the callback gave {sorted(unknown)}; it may give back latents")
    other = given.get("latents")
    if other is None:
        return None
    if not isinstance(other, Tensor) or other.shape != latents.shape:
        raise UserError(
            f"the callback gave latents that are {_kind(other)}; give back a tensor "
            f"{list(latents.shape)}, as it was given"
        )
    return other.to(latents)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise UserError(f"{name} is {_kind(value)}; give a torch.Tensor")


def _kind(value: object) -> str:
    name = type(value).__name__
    shape = getattr(value, "shape", None)
    return f"a {name}" if shape is None else f"a {name} {list(shape)}"


def noise_for(
    model: Model,
    settings: SamplingSettings,
    num: int,
    seed: SupportsIndex | Sequence[SupportsIndex] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: Tensor | None,
) -> tuple[tuple[int | None, ...], Tensor, NoiseSource]:
    """Each of `num` pictures' seed, if it has one, the noise it starts from, and where more is.

    Raises:
        UserError: noise is given in two ways, or not for so many pictures.
    """
    if sum(given is not None for given in (seed, generator, latents)) > 1:
        raise UserError("seed, generator and latents each give the noise; give one of them")
    shape = noise_source(model, [0], settings).shape
    if latents is not None:
        _check_tensor("latents", latents)
        if latents.shape != (num, *shape):
            raise UserError(
                f"latents are {list(latents.shape)}; {num} pictures of {settings.width_px}×"
                f"{settings.height_px} px need {[num, *shape]}"
            )
        return (None,) * num, latents.float(), source_behind(latents)
    if generator is not None:
        generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if len(generators) not in (1, num):
            raise UserError(f"{len(generators)} generators came for {num} pictures; give {num}")
        each = num // len(generators)
        drawn = [
            # Not in the default type, which another thread that loads encoders may have changed.
            torch.randn(each, *shape, generator=one, device=one.device, dtype=torch.float32).cpu()
            for one in generators
        ]
        noise = torch.cat(drawn)
        return (None,) * num, noise, source_behind(noise)
    if seed is None:
        seed = secrets.randbits(32)
    try:
        if isinstance(seed, Sequence | np.ndarray | Tensor):
            seeds = tuple(operator.index(one) for one in seed)
        else:
            seeds = tuple(operator.index(seed) + i for i in range(num))
    except TypeError:
        seeds = ()
    if len(seeds) != num or not all(0 <= one < 2**63 for one in seeds):
        raise UserError(
            f"seed={seed} does not suit {num} pictures; give one whole number from 0 to 2^63 - 1, "
            "or one for each"
        )
    source = noise_source(model, seeds, settings)
    return seeds, source.start(), source
