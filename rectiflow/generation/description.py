"""What a picture's file tells of how it was made, in words: `rectiflow info`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rectiflow.base.config import from_json
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.editing import PictureReference
from rectiflow.generation.metadata import DrawingEnvironment, ModelReference, PictureMetadata
from rectiflow.generation.parameters_text import parse_parameters
from rectiflow.generation.pictures import METADATA_KEY, PARAMETERS_KEY, read_metadata, read_texts

_NAME_WIDTH = 17


def describe_picture(path: Path | str) -> str:
    """A line for each thing that a picture says of itself, or that another tool wrote into it.

    Raises:
        UserError: the file is missing, is no whole picture, or says nothing of how it was made.
    """
    texts = read_texts(path)
    if METADATA_KEY in texts:
        try:
            return _describe(from_json(PictureMetadata, read_metadata(path)))
        except ConfigError as error:
            raise UserError(
                f"{path} has metadata that this version cannot read ({error}); use the version of "
                "rectiflow that drew it"
            ) from error
    if PARAMETERS_KEY in texts:
        found = parse_parameters(texts[PARAMETERS_KEY])
        prompts = {"prompt": found.prompt, "negative prompt": found.negative_prompt}
        return _lines(
            [
                ("written by", "another tool, in the form of AUTOMATIC1111's web UI"),
                *((name, text) for name, text in prompts.items() if text),
                *found.values.items(),
            ]
        )
    raise UserError(
        f"{path} does not say how it was made: it has neither rectiflow's metadata nor the "
        'text "parameters" of other tools; programs that change a picture often drop them'
    )


def _describe(about: PictureMetadata) -> str:
    told = [("prompt", about.prompt)]
    if about.negative_prompt:
        told.append(("negative prompt", about.negative_prompt))
    for name, cut in (about.cut or {}).items():
        for encoder, lost in cut.items():
            told.append((f"{encoder} not seeing", f"of the {name.replace('_', ' ')}: {lost}"))
    told += [("seed", str(about.seed)), ("settings", str(about.settings))]
    told.append(("model", _model(about.model)))
    if about.weaker is not None:
        told.append(("weaker model", _model(about.weaker)))
    if (parts := about.parts) is not None:
        with_t5 = "" if parts.t5_tokens is None else f", {parts.t5_tokens} tokens of T5"
        names = ", ".join(parts.encoders) or "none"
        told.append(("text encoders", f"{names}{with_t5}, precision {parts.precision}"))
    for lora in about.loras:
        told.append(("LoRA", f"{lora.name}, weight {lora.weight:g} (SHA-256 {lora.sha256})"))
    if about.quantization is not None:
        told.append(("blocks multiplied in", about.quantization))
    if about.is_compiled:
        told.append(("blocks", "compiled"))
    if (edit := about.edit) is not None:
        told.append(("drawn from", f"{_picture(edit.source)}, strength {edit.strength:g}"))
        if edit.mask is not None:
            ends = "" if edit.keep_source else ", all pixels from the decoder"
            told.append(("under the mask", _picture(edit.mask) + ends))
    if about.variation is not None:
        seed, amount = about.variation.seed, about.variation.amount
        told.append(("variation", f"towards seed {seed} by {amount:g}"))
    if about.num_evaluations is not None:
        told.append(("evaluations", str(about.num_evaluations)))
    by = f"rectiflow {about.rectiflow}" + _environment(about.environment)
    return _lines([*told, ("drawn by", by)])


def _model(model: ModelReference) -> str:
    return f"{model.name} (SHA-256 {model.sha256})"


def _picture(picture: PictureReference) -> str:
    return f"{picture.name or 'a picture in memory'} (SHA-256 of its pixels {picture.sha256})"


def _environment(environment: DrawingEnvironment | None) -> str:
    if environment is None:
        return ""
    text = (
        f", torch {environment.torch}, {environment.device} ({environment.processor}), "
        f"{environment.precision}"
    )
    return text if environment.threads is None else f"{text}, threads: {environment.threads}"


def _lines(told: Sequence[tuple[str, str]]) -> str:
    indent = "\n" + " " * (_NAME_WIDTH + 1)
    return "\n".join(
        f"{_visible(name):<{_NAME_WIDTH}} {indent.join(map(_visible, text.split(chr(10))))}"
        for name, text in told
    )


def _visible(text: str) -> str:
    """Whatever a file holds, a terminal gets no control characters from it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
