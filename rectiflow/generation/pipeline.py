"""The walk of a prompt as one object, called by the names that users of diffusers know.

Threads may share a `Pipeline`: a call draws to its end with the model that was there when it began,
and LoRAs are loaded into another one. What it is not told follows the model: steps, guidance,
size, number types.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.call_arguments import (
    condition,
    edit_from,
    joinable,
    latents_of,
    noise_for,
    resolve_settings,
)
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.edit_files import Picture
from rectiflow.generation.editing import (
    Edit,
    EditReference,
    check_edit,
    encode_edit,
    first_step,
)
from rectiflow.generation.graphs import GraphsInTheMaking
from rectiflow.generation.latents import times_of
from rectiflow.generation.load_settings import (
    LoadedLora,
    LoadedParts,
    LoadSettings,
    LoraFile,
    Precision,
)
from rectiflow.generation.loras import read_loras
from rectiflow.generation.metadata import Truncations, describe_truncations, find_truncations
from rectiflow.generation.model import (
    Model,
    Quantization,
    WeakerModel,
    load_model,
    with_weaker,
)
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import (
    Inputs,
    check_settings,
    check_uses_null,
    decode_latents,
    draw_in_chunks,
    encode_prompts,
    to_pixels,
)
from rectiflow.models.compilation import check_compiler
from rectiflow.models.cuda_graphs import check_records
from rectiflow.models.layers.embeddings import TIME_SCALE
from rectiflow.models.precision import usable_device
from rectiflow.models.quantization import check_device
from rectiflow.sampling import (
    Guidance,
    Solver,
    TimeGrid,
    parse_grid,
    parse_guidance,
    parse_solver,
)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
#: (pipeline, step, time that it began at times 1000, {"latents": z}) → those to go on with, or {}.
Callback = Callable[["Pipeline", int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]
_PRECISIONS: dict[torch.dtype | None, Precision] = {
    None: "auto",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """Pictures, and all that they were drawn with; `seeds` are None where noise came otherwise.

    `edit` is there if they were drawn from a picture. `cut` are the words of each picture's prompts
    that an encoder did not read, of which the call has warned.
    `images` are PIL pictures; with output_type "np" [n h w 3] and "pt" [n 3 h w], both in [0, 1];
    with "latent" normalised latents [n c h w].
    """

    images: Any
    prompts: tuple[str | None, ...]
    negative_prompts: tuple[str | None, ...]
    seeds: tuple[int | None, ...]
    settings: SamplingSettings
    model: str
    digest: str
    parts: LoadedParts | None
    cut: tuple[Truncations, ...]
    edit: EditReference | None = None
    loras: tuple[LoadedLora, ...] = ()
    quantization: Quantization | None = None
    is_compiled: bool = False


class Pipeline:
    """Text to pictures: `Pipeline.from_pretrained("sd3.5_medium")("a red circle").images[0]`.

    `model` is what the next call draws with, LoRAs included.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._plain = model
        self._changes = ModelChanges()
        self._changing = threading.Lock()
        self._weaker: dict[str, WeakerModel | Model] = {}
        self._loading_weaker = threading.Lock()
        self._waits_for_graphs = True
        self._graphs: GraphsInTheMaking | None = None

    @staticmethod
    def from_pretrained(
        path_or_id: str | Path,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | None = None,
        autoencoder: str | Path | None = None,
        text_encoders: str | Path | None = None,
        tokenizers: str | Path | None = None,
        encoders: Sequence[str] | None = None,
        t5_tokens: int | None = None,
        offload_modulation: bool = False,
    ) -> Pipeline:
        """A pipeline from a run, a shipped model, released weights or a name on the Hub.

        `torch_dtype` is another name of `dtype`; the others are those of `LoadSettings`.

        Raises:
            UserError, CheckpointError, ConfigError: as `load_model`.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise ConfigError(f"dtype={dtype} and torch_dtype={torch_dtype} differ; give one")
        chosen = dtype or torch_dtype
        if chosen not in _PRECISIONS:
            raise ConfigError(f"dtype={chosen} must be torch.float32, torch.bfloat16 or float16")
        if isinstance(encoders, str):
            raise ConfigError(f"encoders={encoders!r} is one text; give a list, [{encoders!r}]")
        places = {
            name: None if value is None else Path(value)
            for name, value in (
                ("autoencoder", autoencoder),
                ("text_encoders", text_encoders),
                ("tokenizers", tokenizers),
            )
        }
        settings = LoadSettings(
            **places,
            encoders=None if encoders is None else tuple(encoders),
            t5_tokens=t5_tokens,
            precision=_PRECISIONS[chosen],
            device=device,
            offload_modulation=offload_modulation,
        )
        return Pipeline(load_model(path_or_id, settings))

    def to(self, device: torch.device | str) -> Pipeline:
        """Itself, on another device; not while it draws, for the weights themselves move.

        Raises:
            ConfigError: there is no such device, it is quantized in a way that the device does not
                multiply in, or compiled and there is no compiler for the device, or recorded and
                the device cannot.
        """
        device = usable_device(str(device))
        with self._changing:
            if self._changes.quantization is not None:
                check_device(self._changes.quantization, device)
            if self._changes.is_compiled:
                check_compiler(device)
            if self._changes.cuda_graphs:
                check_records(device)
            if self._graphs is not None:
                self._graphs.finish()
            self._plain = self._plain.to(device)
            self._weaker = {}
            self._change(self._changes)
        return self

    def quantize(self, kind: str | None) -> None:
        """Multiply in "int8" (CPU) or "fp8" (GPU) from the next call on; None: as before.

        `model.quantization` says how far that moves the backbone's output. LoRAs may come and go
        as before.

        Raises:
            ConfigError: as `generation.quantized.with_quantization`; nothing has changed then.
        """
        with self._changing:
            self._change(replace(self._changes, quantization=kind))

    def compile(self, *, wait: bool = True, cuda_graphs: bool = False) -> None:
        """Run the blocks as compiled graphs from the next call on, one picture at a time.

        The first call of a size compiles, which takes from seconds to minutes. Without `wait` a
        thread does, and calls draw without graphs until it is done; each result's `is_compiled`
        tells which, for pictures differ in a few pixels by a step or two of 255. What the compiler
        raises in that thread, the next call of that size raises. LoRAs may come and go as before.
        `cuda_graphs` also records each step's kernels, for an NVIDIA GPU to repeat as one.

        Raises:
            ConfigError: there is no compiler for the device, or it records nothing; nothing has
                changed then.
        """
        with self._changing:
            waited, self._waits_for_graphs = self._waits_for_graphs, wait
            try:
                self._change(replace(self._changes, is_compiled=True, cuda_graphs=cuda_graphs))
            except ConfigError:
                self._waits_for_graphs = waited
                raise

    def load_lora_weights(self, path: str | Path, *, weight: float = 1.0) -> None:
        """Add a LoRA's file to those that calls from now on draw with; 1 is as trained.

        Calls that have begun go on without. What it changes is copied, so both take memory until
        the other is no longer drawn with or kept for `unload_lora_weights`.

        Raises:
            UserError, CheckpointError: as `generation.loras.with_loras`; nothing has changed then.
        """
        file = LoraFile(path=Path(path), weight=weight)
        with self._changing:
            loras = (*self._changes.loras, *read_loras(self._plain, [file]))
            self._change(replace(self._changes, loras=loras))

    def unload_lora_weights(self) -> None:
        """Draw without LoRAs from the next call on, with the very weights from before them."""
        with self._changing:
            self._change(replace(self._changes, loras=()))

    def _change(self, changes: ModelChanges) -> None:
        plain = replace(changes, is_compiled=False, cuda_graphs=False).of(self._plain)
        model = replace(changes, loras=(), quantization=None).of(plain)
        makes_graphs = changes.is_compiled and not self._waits_for_graphs
        self._graphs = GraphsInTheMaking(model, plain.backbone) if makes_graphs else None
        self.model = model
        self._changes = changes

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: SupportsIndex | Sequence[SupportsIndex] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Float[Tensor, "n c h w"] | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        solver: str | Solver | None = None,
        grid: str | TimeGrid | None = None,
        guidance: str | Guidance | None = None,
        shift: float | None = None,
        image: Picture | None = None,
        mask_image: Picture | None = None,
        strength: float | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> PipelineOutput:
        """Draw `num_images_per_prompt` pictures of each prompt.

        A `guidance_scale` of 1 is no guidance, and as in diffusers so is any below. Words that an
        encoder does not read are warned of, once for each encoder and prompt.

        With an `image`, from PIL or as bytes [h w 3], all start from it and have its size;
        `strength`, 0.6 unless said, is the part of the steps that are taken. `mask_image` is white
        where it is painted anew, grey mixes; what it keeps are the image's own pixels
        (`generation.editing`).

        `prompt_embeds` [n l d] and `pooled_prompt_embeds` [n p] stand for prompts, the others for
        negative ones.

        `seed` counts up from picture to picture, or there is one for each: a picture is the same
        alone and among others. A `generator` draws as diffusers does, all pictures' noise at once;
        `latents` are the noise itself. Without any of these the seed is drawn, and is in the
        result. `callback_on_step_end` is called after each step of each chunk of pictures that
        are drawn together.

        Raises:
            UserError, ConfigError: what was given does not go together, with the model, or with
                the guidance.
            DivergedError: latents are not finite any more.
        """
        graphs, model = self._graphs, self.model
        # One of them may be newer, if another thread is just changing the model.
        graphs = graphs if graphs is not None and graphs.compiled is model else None
        edit = edit_from(image, mask_image, strength)
        if edit is not None:
            height = edit.source.shape[0] if height is None else height
            width = edit.source.shape[1] if width is None else width
        settings = resolve_settings(
            model.settings,
            num_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height_px=height,
            width_px=width,
            shift=shift,
            solver=parse_solver(solver) if isinstance(solver, str) else solver,
            grid=parse_grid(grid) if isinstance(grid, str) else grid,
            guidance=parse_guidance(guidance) if isinstance(guidance, str) else guidance,
        )
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"output_type={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}"
            )
        if num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt={num_images_per_prompt} must be at least 1")
        model = self._with_weaker(model, settings)
        check_settings(model, settings)
        check_edit(model, edit, settings)
        prompts, conditioning = condition(
            model, "prompt", prompt, prompt_embeds, pooled_prompt_embeds
        )
        if conditioning is None:
            raise UserError("give a prompt, or prompt_embeds and pooled_prompt_embeds")
        negatives, negative = condition(
            model,
            "negative_prompt",
            negative_prompt,
            negative_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        if negative is None:
            negatives = ("",)
            _, negative = encode_prompts(model, [""])
        elif any(text is None or text for text in negatives):
            check_uses_null(settings)
        conditioning, negative = joinable(conditioning, negative, settings)
        if len(negatives) == 1 < len(prompts):
            negatives, negative = negatives * len(prompts), negative.expand(len(prompts))
        if len(negatives) != len(prompts):
            raise UserError(
                f"{len(negatives)} negative prompts came with {len(prompts)} prompts; give one for "
                "all, or one for each"
            )
        cut = [
            find_truncations(model, prompt or "", negative_prompt or "")
            for prompt, negative_prompt in zip(prompts, negatives, strict=True)
        ]
        for line in dict.fromkeys(line for found in cut for line in describe_truncations(found)):
            warnings.warn(line, stacklevel=2)
        # Pictures of a prompt stand together, as in diffusers.
        rows = torch.arange(len(prompts)).repeat_interleave(num_images_per_prompt)
        seeds, noise, source = noise_for(model, settings, len(rows), seed, generator, latents)
        inputs = Inputs(
            conditioning=conditioning[rows],
            negative=negative[rows],
            noise=noise.to(model.device),
            source=source,
        )
        on_step = None
        if callback_on_step_end is not None:
            # The first step that is taken: those that an edit or the guidance leaves out are gone.
            first = 0 if edit is None else first_step(settings.num_steps, edit.strength)
            num_resting_steps = settings.guidance.num_resting_steps(settings.guidance_scale)
            first = max(first, num_resting_steps)
            began = times_of(model, noise, settings)[first].item()
            on_step = self._on_step(callback_on_step_end, began)
        encoded = None if edit is None else encode_edit(model, edit)
        if graphs is not None:
            model = graphs.model_for(model, inputs, settings, encoded)
        drawn: list[Tensor] = []
        draw_in_chunks(model, inputs, settings, drawn.append, edit=encoded, on_step=on_step)
        return PipelineOutput(
            images=_finish(model, torch.cat(drawn), output_type, edit),
            prompts=tuple(prompts[row] for row in rows.tolist()),
            negative_prompts=tuple(negatives[row] for row in rows.tolist()),
            seeds=seeds,
            settings=settings,
            model=model.name,
            digest=model.digest,
            parts=model.parts,
            cut=tuple(cut[row] for row in rows.tolist()),
            edit=None if edit is None else edit.reference,
            loras=model.loras,
            quantization=model.quantization,
            is_compiled=model.is_compiled,
        )

    def _with_weaker(self, model: Model, settings: SamplingSettings) -> Model:
        """As `with_weaker`, which loads what is not beside it: once for all calls and threads."""
        name = settings.guidance.weaker_model
        if name is None:
            return model
        with self._loading_weaker:
            if (known := self._weaker.get(name)) is not None:
                model = replace(model, weaker=known)
            model = with_weaker(model, settings)
            assert model.weaker is not None
            self._weaker[name] = model.weaker
        return model

    def _on_step(
        self, callback: Callback, first_began: float
    ) -> Callable[[int, Tensor, Tensor], Tensor | None]:
        began = first_began

        def on_step(i: int, t_next: Tensor, z: Tensor) -> Tensor | None:
            nonlocal began
            began = first_began if i == 0 else began
            found = callback(self, i, TIME_SCALE * began, {"latents": z})
            began = t_next.item()
            return None if found is None else latents_of(found, z)

        return on_step


def _finish(model: Model, latents: Tensor, output_type: str, edit: Edit | None) -> Any:
    """Of an edit, pictures have the source's pixels where they are kept; latents are as drawn."""
    if output_type == "latent":
        return latents
    finish = (lambda pictures: pictures) if edit is None else edit.finish
    with torch.inference_mode():
        # One by one, as `generate` does and for the same reason.
        images = torch.cat([decode_latents(model, row) for row in latents.split(1)])
    if output_type == "pil":
        return [Image.fromarray(pixels) for pixels in finish(to_pixels(images))]
    scaled = (images.clamp(-1.0, 1.0) + 1.0) / 2.0
    floats = finish(np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy()))
    if output_type == "pt":
        return torch.from_numpy(floats).permute(0, 3, 1, 2).to(images.device)
    return floats
