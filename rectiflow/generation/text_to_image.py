"""Prompts to pictures, one function a stage: encode → noise → latents → pixels.

The walk of a prompt: here, then `models.text`, `sampling`, the backbone, the autoencoder. Picture i
is a function of (model, prompt i, negative prompt i, settings, seed i) alone: on one CPU and thread
count it has the same bytes alone, in any batch and beside any neighbour (see `generation.chunks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from rectiflow.base.errors import DivergedError, UserError
from rectiflow.generation.chunks import plan_chunks, trusted_sizes
from rectiflow.generation.editing import Edit, EncodedEdit, check_edit, encode_edit
from rectiflow.generation.latents import OnEvaluated, draw_latents
from rectiflow.generation.model import Model, with_weaker
from rectiflow.generation.noise import NoiseSource, check_seed, noise_source
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.variations import Variation
from rectiflow.models.autoencoder import tiling
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.precision import autocast
from rectiflow.models.text import EncodedText, assemble
from rectiflow.sampling import NoGuidance, OnStep, spell

OnProgress = Callable[[int, int], None]
#: Given a picture's place among the prompts, and its pixels [h w 3].
OnDrawn = Callable[[int, NDArray[np.uint8]], None]

#: With up to so many tokens, the text's included, one picture leaves the processor idle; a larger
#: one is as fast alone.
MAX_TOKENS_OF_SMALL = 128
PROBE_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What pictures are drawn from, a row each: prompt, negative prompt, noise.

    `noise` is what drawing starts from, `source` where a solver that adds noise has more.
    """

    conditioning: Conditioning
    negative: Conditioning
    noise: Float[Tensor, "n c h w"]
    source: NoiseSource

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        return Inputs(
            conditioning=self.conditioning[rows],
            negative=self.negative[rows],
            noise=self.noise[rows],
            source=self.source[rows],
        )


def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    negative_prompts: Sequence[str] | None = None,
    edit: Edit | None = None,
    variations: Sequence[Variation] | None = None,
    progress: OnProgress | None = None,
    on_evaluated: OnEvaluated | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """The pictures of `draw_pictures`, together at its end; raises as that does."""
    images: list[UInt8[np.ndarray, "h w 3"]] = []
    draw_pictures(
        model,
        prompts,
        seeds,
        settings,
        negative_prompts=negative_prompts,
        edit=edit,
        variations=variations,
        progress=progress,
        on_evaluated=on_evaluated,
        on_drawn=lambda _, image: images.append(image),
    )
    return np.stack(images)


@torch.inference_mode()
def draw_pictures(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    negative_prompts: Sequence[str] | None = None,
    edit: Edit | None = None,
    variations: Sequence[Variation] | None = None,
    progress: OnProgress | None = None,
    on_evaluated: OnEvaluated | None = None,
    on_drawn: OnDrawn,
) -> None:
    """Draw one picture for each prompt and its seed, and hand over each as soon as there is one.

    An empty prompt is allowed and draws without a condition. Guidance leads picture i away from
    its negative prompt, which is the empty one where none are given. With an `edit` all start from
    its picture, with `variations`, one a picture, from turned noise. `progress(done, total)`
    counts pictures. `on_evaluated` is told the field's evaluations for each batch, which with a
    solver that chooses its steps is one picture. Only `on_drawn` is left with the pictures.

    Raises:
        UserError: prompts, negative prompts, seeds and variations differ in number, a seed is out
            of range, the size does not fit the model, a prompt is not valid text, or the guidance
            or the edit does not go with the model, or has no use for a negative prompt.
        DivergedError: latents are not finite any more.
    """
    settings = settings or model.settings
    model = with_weaker(model, settings)
    check_request(model, prompts, seeds, settings, negative_prompts)
    check_edit(model, edit, settings)
    conditioning, null = encode_prompts(model, [*prompts, *(negative_prompts or ())])
    source = noise_source(model, seeds, settings, variations)
    inputs = Inputs(
        conditioning=conditioning[: len(prompts)],
        negative=conditioning[len(prompts) :] if negative_prompts else null.expand(len(prompts)),
        noise=source.start().to(model.device),
        source=source,
    )
    done = 0

    def finish(rows: Tensor) -> None:
        nonlocal done
        # One by one: convolutions round differently in every size of batch.
        for row in rows.split(1):
            pixels = to_pixels(decode_latents(model, row))
            on_drawn(done, (pixels if edit is None else edit.finish(pixels))[0])
            done += 1
        if progress is not None:
            progress(done, len(prompts))

    draw_in_chunks(
        model,
        inputs,
        settings,
        finish,
        edit=None if edit is None else encode_edit(model, edit),
        on_evaluated=on_evaluated,
    )


@torch.inference_mode()
def draw_in_chunks(
    model: Model,
    inputs: Inputs,
    settings: SamplingSettings,
    on_latents: Callable[[Float[Tensor, "b c h w"]], None],
    *,
    edit: EncodedEdit | None = None,
    on_step: OnStep | None = None,
    on_evaluated: OnEvaluated | None = None,
) -> None:
    """Draw the latents of all rows, as many together as leave each its bits.

    `on_latents` gets them chunk by chunk, in order; `edit`, `on_step` and `on_evaluated` are as in
    `draw_latents`, for each chunk. Rows that only fill a chunk up are not shown.
    """
    num = len(inputs)
    # Within one autocast block the cast weights are kept, so they are cast once.
    with autocast("auto" if model.uses_autocast else "fp32", model.device):
        done = 0
        sizes = _chunk_sizes(model, inputs.negative[:1], settings, num, edit)
        for size in plan_chunks(num, sizes):
            places = torch.arange(done, done + size).clamp(max=num - 1)
            chunk = inputs[places]
            latents = draw_latents(
                model,
                chunk.conditioning,
                chunk.negative,
                chunk.noise,
                settings,
                source=chunk.source,
                edit=edit,
                on_step=None if on_step is None else _without_filling(on_step, num - done),
                on_evaluated=on_evaluated,
                places=places.tolist(),
            )
            on_latents(latents[: num - done])
            done += size


def _without_filling(on_step: OnStep, num: int) -> OnStep:
    """`on_step` for a chunk of which `num` rows are asked for: what it gives is filled up again."""

    def shown(i: int, t_next: Tensor, z: Tensor) -> Tensor | None:
        other = on_step(i, t_next, z[:num])
        if other is None or len(z) <= num:
            return other
        return torch.cat([other, other[-1:].expand(len(z) - num, *other.shape[1:])])

    return shown


def check_request(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    negative_prompts: Sequence[str] | None = None,
) -> None:
    """Pass if the pictures can be drawn.

    Raises:
        UserError: they cannot; the text says what is allowed.
    """
    if isinstance(prompts, str) or len(prompts) != len(seeds) or not prompts:
        raise UserError(
            f"{len(prompts)} prompts came with {len(seeds)} seeds; give a list of at least one "
            "prompt and one seed for each"
        )
    if negative_prompts is not None:
        if isinstance(negative_prompts, str) or len(negative_prompts) != len(prompts):
            raise UserError(
                f"{len(negative_prompts)} negative prompts came with {len(prompts)} prompts; give "
                'a list of one for each, "" where there is none'
            )
        if any(negative_prompts):
            check_uses_null(settings)
    for seed in seeds:
        check_seed(seed)
    check_settings(model, settings)


def check_settings(model: Model, settings: SamplingSettings) -> None:
    """Pass if the model draws pictures of that size, guided so.

    Raises:
        UserError: as `check_size`.
        ConfigError: the guidance disturbs blocks that the model has not.
    """
    check_size(model, settings)
    settings.guidance.check_backbone(model.backbone)


def check_size(model: Model, settings: SamplingSettings) -> None:
    """Pass if the model, and the weaker one beside it, draw pictures of that size.

    Raises:
        UserError: one does not; the text says which it does.
    """
    checked = [("this model", model.backbone.config)]
    if model.weaker is not None:
        checked.append((f"the weaker model {model.weaker.name}", model.weaker.backbone.config))
    for which, config in checked:
        multiple = model.autoencoder.config.downsample_factor * config.patch_size
        largest = multiple * config.position_side
        for name, side_px in (("height", settings.height_px), ("width", settings.width_px)):
            if side_px % multiple or not 0 < side_px <= largest:
                raise UserError(
                    f"{name} {side_px} px does not fit {which}; give a multiple of {multiple} px "
                    f"up to {largest} px (this model was trained at {model.resolution_px} px)"
                )


def check_uses_null(settings: SamplingSettings) -> None:
    """Pass if the guidance looks at negative prompts.

    Raises:
        UserError: it does not, so that to give one would change nothing.
    """
    if not settings.guidance.uses_null(settings.guidance_scale):
        raise UserError(
            f"a negative prompt changes nothing with guidance {spell(settings.guidance)} at "
            f"scale {settings.guidance_scale:g}, which never looks at it; choose cfg with a "
            "guidance_scale above 1, or leave the negative prompt out"
        )


def encode_prompts(model: Model, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
    """The prompts' conditioning [n …] and that of the empty prompt [1 …]."""
    conditioner = model.conditioner
    # Zeros for T5 are so many equal tokens.
    num_equal = 1 if "t5" in conditioner.tokenizers else max(1, conditioner.config.t5.length)

    def condition(text: EncodedText) -> Conditioning:
        whole = assemble(text).to(model.device, torch.float32)
        return whole.with_last_as_one(num_equal)

    return condition(conditioner.encode(list(prompts))), condition(conditioner.null())


def decode_latents(model: Model, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
    """Latents to images, in float32 whatever the backbone computes in.

    Large pictures are decoded in strips, to the same result within rounding.
    """
    with torch.autocast(latents.device.type, enabled=False):
        return tiling.decode(model.autoencoder, latents.float())


def to_pixels(images: Float[Tensor, "b 3 H W"]) -> UInt8[np.ndarray, "b H W 3"]:
    """Images in [−1, 1] to rounded bytes; what lies outside is clipped."""
    levels = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _chunk_sizes(
    model: Model,
    null: Conditioning,
    settings: SamplingSettings,
    count: int,
    edit: EncodedEdit | None,
) -> tuple[int, ...]:
    """How many pictures to draw together, after the probe of `chunks.trusted_sizes`.

    The reference size follows from model and settings only, never from `count`. Each phase of the
    guidance is probed, for each has batches of its own size. An edit is probed from pure noise on.
    """
    # A graph is compiled for every size, and none is trusted before it has been probed.
    if settings.solver.couples_samples or model.is_compiled:
        return (1,)
    factor = model.autoencoder.config.downsample_factor * model.backbone.config.patch_size
    num_image = (settings.height_px // factor) * (settings.width_px // factor)
    is_small = num_image + null.context.shape[1] <= MAX_TOKENS_OF_SMALL
    reference, others = (4, [1, 16]) if is_small else (1, [4])
    if model.device.type == "cuda":
        others.append(16 * reference)
    probed = [
        replace(
            settings,
            num_steps=min(PROBE_STEPS, settings.num_steps),
            guidance=phase,
            guidance_scale=1.0 if isinstance(phase, NoGuidance) else settings.guidance_scale,
        )
        for phase in settings.guidance.phases
    ]
    # Another than null: between equal ones guidance has nothing to sum over a sample.
    prompt = replace(null, context=null.context.flip(1), pooled=null.pooled.flip(1))
    source = noise_source(model, [0], settings)
    noise = source.start().to(model.device)
    if edit is not None:
        edit = replace(edit, strength=1.0)

    def probe(size: int) -> Tensor:
        rows, sources = noise.expand(size, -1, -1, -1), source[torch.zeros(size, dtype=torch.int64)]
        try:
            drawn = [
                draw_latents(
                    model, prompt.expand(size), null, rows, phase, source=sources, edit=edit
                )
                for phase in probed
            ]
        except DivergedError:
            # Whether the pictures do is for their own drawing to say; NaN equals no other row.
            return torch.full((size, 1), torch.nan, device=model.device)
        return torch.cat(drawn, dim=1)

    return trusted_sizes(probe, [s for s in others if s <= count], reference=reference)
