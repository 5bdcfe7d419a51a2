"""What a picture says about itself: all that it depends on, and where it was drawn.

Last stop on the walk of a prompt. A file's name, its JSON chunk and a replay follow from this.
Nothing in it tells one drawing from the next: equal pictures from one machine are equal files.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace

import torch

from rectiflow import __version__
from rectiflow.base.config import LATER, to_json
from rectiflow.generation.editing import Edit, EditReference
from rectiflow.generation.load_settings import LoadedLora, LoadedParts
from rectiflow.generation.model import Model
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.variations import Variation

#: For each of "prompt" and "negative_prompt" the words that an encoder does not read, by encoder.
Truncations = dict[str, dict[str, str]]

MAX_SLUG_CHARACTERS = 48
MAX_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A model by the name it was asked for, and its weights by their hash."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DrawingEnvironment:
    """What the last bits of a picture depend on beside all that was asked for.

    `processor` is the GPU's name, or the widest instructions that torch uses on a CPU. `threads`
    counts where they matter: sums are split among a CPU's threads, and round differently.
    """

    torch: str
    device: str
    processor: str
    precision: str
    threads: int | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class PictureMetadata:
    """All that a picture depends on, as it stands in its file.

    `cut` are the words that an encoder did not read. `num_evaluations` is there if the solver chose
    its steps.
    """

    prompt: str
    seed: int
    settings: SamplingSettings
    model: ModelReference
    rectiflow: str
    negative_prompt: str = field(default="", metadata=LATER)
    weaker: ModelReference | None = field(default=None, metadata=LATER)
    parts: LoadedParts | None = field(default=None, metadata=LATER)
    cut: Truncations | None = field(default=None, metadata=LATER)
    environment: DrawingEnvironment | None = field(default=None, metadata=LATER)
    num_evaluations: int | None = field(default=None, metadata=LATER)
    edit: EditReference | None = field(default=None, metadata=LATER)
    variation: Variation | None = field(default=None, metadata=LATER)
    loras: tuple[LoadedLora, ...] = field(default=(), metadata=LATER)
    quantization: str | None = field(default=None, metadata=LATER)
    is_compiled: bool = field(default=False, metadata=LATER)

    @property
    def file_name(self) -> str:
        """Readable; the hash tells models, settings, edits and look-alike prompts apart."""
        key = [self.prompt, to_json(self.settings), self.model.sha256]
        if self.weaker is not None:
            key.append(self.weaker.sha256)
        if self.negative_prompt:
            key.append({"negative_prompt": self.negative_prompt})
        if self.parts is not None:
            key.append(to_json(self.parts))
        # By what they hold, whatever their files are called.
        if (edit := self.edit) is not None:
            mask = edit.mask and edit.mask.sha256
            key.append({"edit": [edit.source.sha256, mask, edit.strength, edit.keep_source]})
        if self.loras:
            key.append({"loras": [[lora.sha256, lora.weight] for lora in self.loras]})
        if self.quantization is not None:
            key.append({"quantization": self.quantization})
        if self.is_compiled:
            key.append({"is_compiled": True})
        end = f"seed{self.seed}"
        if self.variation is not None:
            key.append({"variation": self.variation.amount})
            end += f"-variation{self.variation.seed}"
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        words = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")
        words = words[:MAX_SLUG_CHARACTERS].strip("-") or "picture"
        return f"{words}-{digest}-{end}.png"

    def evaluated(self, num_evaluations: int) -> PictureMetadata:
        """The same once the field was evaluated so often for it, which only some solvers choose."""
        chooses_steps = self.settings.solver.couples_samples
        return replace(self, num_evaluations=num_evaluations) if chooses_steps else self


def picture_metadata(
    model: Model,
    prompt: str,
    seed: int,
    settings: SamplingSettings,
    *,
    negative_prompt: str = "",
    edit: Edit | EditReference | None = None,
    variation: Variation | None = None,
) -> PictureMetadata:
    """What a picture will say about itself when it is drawn here.

    Raises:
        UserError: a prompt is not valid text.
    """
    return PictureMetadata(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        settings=settings,
        model=ModelReference(name=model.name, sha256=model.digest),
        rectiflow=__version__,
        weaker=None
        if model.weaker is None or settings.guidance.weaker_model is None
        else ModelReference(name=model.weaker.name, sha256=model.weaker.digest),
        parts=model.parts,
        cut=find_truncations(model, prompt, negative_prompt) or None,
        environment=drawing_environment(model.device, model.product_dtype),
        edit=edit.reference if isinstance(edit, Edit) else edit,
        variation=variation,
        loras=model.loras,
        quantization=model.quantization and model.quantization.kind,
        is_compiled=model.is_compiled,
    )


def count_up(first: PictureMetadata, count: int, *, start: int = 0) -> list[PictureMetadata]:
    """`count` pictures from this one on: seeds count up, or those of variations if it is one.

    The first `start` of them are left out.
    """
    variation, places = first.variation, range(start, start + count)
    if variation is None:
        return [replace(first, seed=first.seed + i) for i in places]
    return [replace(first, variation=replace(variation, seed=variation.seed + i)) for i in places]


def drawing_environment(device: torch.device, product_dtype: torch.dtype) -> DrawingEnvironment:
    """Where pictures are drawn on this device, in this process."""
    is_cuda = device.type == "cuda"
    return DrawingEnvironment(
        torch=str(torch.__version__),
        device=device.type,
        processor=torch.cuda.get_device_name(device)
        if is_cuda
        else torch.backends.cpu.get_cpu_capability(),
        precision=str(product_dtype).removeprefix("torch."),
        threads=None if is_cuda else torch.get_num_threads(),
    )


def find_truncations(model: Model, prompt: str, negative_prompt: str) -> Truncations:
    """The words of either prompt that an encoder does not read.

    Raises:
        UserError: a prompt is not valid text.
    """
    prompts = {"prompt": prompt, "negative_prompt": negative_prompt}
    cut = {name: dict(model.conditioner.truncations(text)) for name, text in prompts.items()}
    return {name: lost for name, lost in cut.items() if lost}


def describe_truncations(truncations: Truncations) -> list[str]:
    """One line for each text encoder that does not read a whole prompt, with what it loses."""
    lines: list[str] = []
    for name, cut in truncations.items():
        for encoder, lost in cut.items():
            shown = " ".join(lost.split())
            if len(shown) > MAX_SHOWN_CHARACTERS:
                shown = f"{shown[:MAX_SHOWN_CHARACTERS]}… ({len(lost):,} characters)"
            what = name.replace("_", " ")
            lines.append(f'the {what} is too long for {encoder}, which does not see: "{shown}"')
    return lines
