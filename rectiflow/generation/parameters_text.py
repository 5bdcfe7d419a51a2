"""The text that AUTOMATIC1111's web UI writes into pictures, and Civitai and others read.

The prompt; a line that begins with "Negative prompt:"; a last line of "Key: value" with commas
between. Beside a picture's JSON, which is complete: this form has no way to escape a line of a
prompt that itself begins with "Negative prompt:".
Source: AUTOMATIC1111/stable-diffusion-webui, `modules/infotext_utils.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from rectiflow.generation.load_settings import LoadedLora
from rectiflow.generation.metadata import PictureMetadata
from rectiflow.generation.settings import SamplingSettings
from rectiflow.sampling import spell

NEGATIVE = "Negative prompt:"
#: A last line with fewer pairs than this belongs to the prompt, as those who write the form agree.
MIN_PAIRS = 3
#: Digits of a model's hash by which Civitai finds it.
HASH_DIGITS = 10
#: Names that others know; any other solver is called as our own command line does.
SAMPLERS = {"euler": "Euler", "heun": "Heun", "dpm++2m": "DPM++ 2M"}

_PAIR = re.compile(r'(?:^|,)\s*(\w[^,:"]*):(\s*"(?:[^"\\]|\\.)*"\s*|[^,]*)(?=,|$)')


@dataclass(frozen=True, kw_only=True)
class ParametersText:
    """What the text says; `str()` writes it, `parse_parameters` reads it.

    White space around a prompt is lost. A key has no comma, colon or quote.
    """

    prompt: str = ""
    negative_prompt: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        negative = self.negative_prompt.strip()
        negative = f"{NEGATIVE} {negative}" if negative else ""
        pairs = ", ".join(f"{key}: {_quote(value)}" for key, value in self.values.items())
        # A PNG's text may not hold zero bytes.
        return "\n".join(filter(None, (self.prompt.strip(), negative, pairs))).replace("\0", " ")


def parameters_of(about: PictureMetadata) -> ParametersText:
    """A picture's metadata as other tools name them, and what is unusual by names of our own."""
    settings, usual = about.settings, SamplingSettings()
    solver = spell(settings.solver)
    values = {
        "Steps": str(settings.num_steps),
        "Sampler": SAMPLERS.get(solver, solver),
        "CFG scale": str(settings.guidance_scale),
        "Seed": str(about.seed),
        "Size": f"{settings.width_px}x{settings.height_px}",
        "Model hash": about.model.sha256[:HASH_DIGITS],
        # Where the model lies on somebody's disk concerns nobody that the picture is shown to.
        "Model": PurePath(about.model.name).name or about.model.name,
    }
    if settings.grid != usual.grid:
        values["Schedule type"] = spell(settings.grid)
    if settings.shift != usual.shift:
        values["Shift"] = str(settings.shift)
    if settings.guidance != usual.guidance:
        values["Guidance"] = spell(settings.guidance)
    if about.edit is not None:
        values["Denoising strength"] = str(about.edit.strength)
        values["Init image hash"] = about.edit.source.sha256[:HASH_DIGITS]
        if about.edit.mask is not None:
            values["Mask hash"] = about.edit.mask.sha256[:HASH_DIGITS]
    if about.variation is not None:
        values["Variation seed"] = str(about.variation.seed)
        values["Variation seed strength"] = str(about.variation.amount)
    prompt, loras = about.prompt, [(_lora_name(lora), lora) for lora in about.loras]
    if loras:
        # Where the form has them: in the prompt.
        prompt += "".join(f" <lora:{name}:{lora.weight:g}>" for name, lora in loras)
        hashes = (f"{name}: {lora.sha256[:HASH_DIGITS]}" for name, lora in loras)
        values["Lora hashes"] = ", ".join(hashes)
    values["Version"] = f"rectiflow {about.rectiflow}"
    return ParametersText(prompt=prompt, negative_prompt=about.negative_prompt, values=values)


def parse_parameters(text: str) -> ParametersText:
    """What a text of this form says, whoever wrote it. Any text is one: without pairs, a prompt."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < MIN_PAIRS:
        lines, pairs = [*lines, last], []
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    return ParametersText(
        prompt="\n".join(lines[:start]).strip(),
        negative_prompt="\n".join(lines[start:]).removeprefix(NEGATIVE).strip(),
        values={key.strip(): _unquote(value) for key, value in pairs},
    )


def _lora_name(lora: LoadedLora) -> str:
    """A file's name without its ending and what the form itself uses."""
    return re.sub(r"[,:<>\n]", "", PurePath(lora.name).stem)


def _quote(value: str) -> str:
    is_plain = not re.search(r'[,:\n"\\]', value) and value == value.strip()
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _unquote(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:  # somebody's quotes that are none of JSON
        return value
