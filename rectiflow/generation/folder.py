"""Pictures of one prompt into a folder: what `rectiflow sample` does.

Last stop on the walk of a prompt. File names follow from prompt, model, settings and seed, so that
drawing again writes the same bytes under the same name and nothing else is written over.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rectiflow import __version__
from rectiflow.base.config import to_json
from rectiflow.base.errors import UserError
from rectiflow.generation.model import Model, load_model, with_weaker
from rectiflow.generation.pictures import save_png
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import OnProgress, generate

MAX_SLUG_CHARACTERS = 48
MAX_SHOWN_CHARACTERS = 200


def sample_to_folder(
    model: Model | str | Path,
    prompt: str,
    *,
    count: int,
    seed: int,
    out: Path | str,
    settings: SamplingSettings | None = None,
    progress: OnProgress | None = None,
    warn: Callable[[str], None] = lambda text: print(f"rectiflow: {text}", file=sys.stderr),
) -> list[Path]:
    """Draw `count` pictures of a prompt with seeds seed, seed + 1, … and save each as PNG.

    `warn` is told what an encoder could not take in of a long prompt. The empty prompt draws
    without a condition.

    Raises:
        UserError: the model, the prompt or a number is unusable, or a file cannot be written.
    """
    if count < 1:
        raise UserError(f"{count} pictures were asked for; give a number of at least 1")
    out = Path(out)
    refuse_file(out)
    loaded = model if isinstance(model, Model) else load_model(model)
    settings = settings or loaded.settings
    loaded = with_weaker(loaded, settings)
    for text in describe_truncations(loaded, prompt):
        warn(text)
    seeds = [seed + i for i in range(count)]
    evaluations: list[int] = []
    images = generate(
        loaded,
        [prompt] * count,
        seeds,
        settings,
        progress=progress,
        on_evaluated=evaluations.append,
    )
    paths: list[Path] = []
    for i, (image, picture_seed) in enumerate(zip(images, seeds)):
        about = picture_metadata(loaded, prompt, picture_seed, settings)
        if settings.solver.couples_samples:
            # The solver chose its steps, picture by picture.
            about["num_evaluations"] = evaluations[i]
        path = out / f"{_stem(about)}-seed{picture_seed}.png"
        save_png(path, image, about)
        paths.append(path)
    return paths


def picture_metadata(
    model: Model, prompt: str, seed: int, settings: SamplingSettings
) -> dict[str, Any]:
    """All that a picture depends on, as it stands in its file."""
    about: dict[str, Any] = {
        "prompt": prompt,
        "seed": seed,
        "settings": to_json(settings),
        "model": {"name": model.name, "sha256": model.digest},
        "rectiflow": __version__,
    }
    if model.weaker is not None:
        about["weaker"] = {"name": model.weaker.name, "sha256": model.weaker.digest}
    return about


def describe_truncations(model: Model, prompt: str) -> list[str]:
    """One line for each text encoder that does not read the whole prompt, with what it loses."""
    lines: list[str] = []
    for encoder, lost in model.conditioner.truncations(prompt):
        shown = " ".join(lost.split())
        if len(shown) > MAX_SHOWN_CHARACTERS:
            shown = f"{shown[:MAX_SHOWN_CHARACTERS]}… ({len(lost):,} characters)"
        lines.append(f'the prompt is too long for {encoder}, which does not see: "{shown}"')
    return lines


def _stem(about: dict[str, Any]) -> str:
    """A readable name; the hash tells models, settings and look-alike prompts apart."""
    key = [about["prompt"], about["settings"], about["model"]["sha256"]]
    if "weaker" in about:
        key.append(about["weaker"]["sha256"])
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", about["prompt"].lower()).strip("-")
    words = words[:MAX_SLUG_CHARACTERS].strip("-")
    return f"{words}-{digest}" if words else f"picture-{digest}"


def refuse_file(out: Path) -> None:
    """Pass if `out` may be a folder of pictures; to tell before minutes of drawing, not after.

    Raises:
        UserError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder; choose another place for the pictures")
