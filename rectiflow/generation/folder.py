"""Pictures of one prompt into a folder: what `rectiflow sample` does.

Last stop on the walk of a prompt. File names follow from prompts, model, settings and seed, so that
drawing again writes the same bytes under the same name and nothing else is written over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from rectiflow.base.config import to_json
from rectiflow.base.errors import UserError
from rectiflow.base.files import explain_os_error, refuse_unwritable
from rectiflow.generation.editing import Edit
from rectiflow.generation.metadata import (
    PictureMetadata,
    count_up,
    describe_truncations,
    picture_metadata,
)
from rectiflow.generation.model import Model, load_model, with_weaker
from rectiflow.generation.noise import check_seed
from rectiflow.generation.parameters_text import parameters_of
from rectiflow.generation.pictures import save_png
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import OnProgress, draw_pictures
from rectiflow.generation.variations import Variation

#: Pictures that are drawn together: enough to fill batches, few enough to lie in memory.
MAX_TOGETHER = 64
#: Pictures of one prompt: more are a mistyped number, and too many files for one folder.
MAX_COUNT = 1_000_000
Warn = Callable[[str], None]


def warn_on_stderr(text: str) -> None:
    """One line to whoever looks on."""
    print(f"rectiflow: {text}", file=sys.stderr)


def sample_to_folder(
    model: Model | str | Path,
    prompt: str,
    *,
    count: int,
    seed: int,
    out: Path | str,
    negative_prompt: str = "",
    settings: SamplingSettings | None = None,
    edit: Edit | None = None,
    variation: Variation | None = None,
    progress: OnProgress | None = None,
    warn: Warn = warn_on_stderr,
) -> list[Path]:
    """Draw `count` pictures of a prompt with seeds seed, seed + 1, … and save each as PNG.

    With an `edit` all start from its picture. With a `variation` all have the one seed, and the
    variation's counts up: `count` variations of one picture.
    `warn` is told what an encoder could not take in of a long prompt. The empty prompt draws
    without a condition.

    Raises:
        UserError: the model, a prompt or a number is unusable, or a file cannot be written.
    """
    check_count(count)
    out = Path(out)
    refuse_file(out)
    loaded = model if isinstance(model, Model) else load_model(model)
    settings = settings or loaded.settings
    loaded = with_weaker(loaded, settings)
    first = picture_metadata(
        loaded,
        prompt,
        seed,
        settings,
        negative_prompt=negative_prompt,
        edit=edit,
        variation=variation,
    )
    (last,) = count_up(first, 1, start=count - 1)
    for about in (first, last):
        check_seed(about.seed if about.variation is None else about.variation.seed)
    for text in describe_truncations(first.cut or {}):
        warn(text)
    paths: list[Path] = []
    for start in range(0, count, MAX_TOGETHER):
        pictures = count_up(first, min(MAX_TOGETHER, count - start), start=start)
        counted = counted_from(start, count, progress)
        draw_to_files(loaded, pictures, out, edit=edit, progress=counted)
        paths += [out / about.file_name for about in pictures]
    return paths


def check_count(count: int) -> None:
    """Pass if so many pictures of a prompt can be drawn.

    Raises:
        UserError: there are none, or too many.
    """
    if not 1 <= count <= MAX_COUNT:
        raise UserError(f"{count} pictures were asked for; give a number from 1 to {MAX_COUNT:,}")


def counted_from(done: int, total: int, progress: OnProgress | None) -> OnProgress | None:
    """`progress` for some of `total` pictures, after the first `done`."""
    return progress and (lambda done_here, _: progress(done + done_here, total))


def draw_to_files(
    model: Model,
    pictures: Sequence[PictureMetadata],
    out: Path,
    *,
    edit: Edit | None = None,
    progress: OnProgress | None = None,
) -> None:
    """Draw what the metadata of `pictures` say, all of equal settings, each saved once drawn.

    `edit` is the one that they name. Either all or none of them are variations.

    Raises:
        UserError: one cannot be drawn, or its file cannot be written.
    """
    settings = pictures[0].settings
    negative_prompts = [about.negative_prompt for about in pictures]
    variations = [about.variation for about in pictures if about.variation is not None]
    evaluations: list[int] = []

    def save(place: int, image: NDArray[np.uint8]) -> None:
        # A solver that chooses its steps does so picture by picture.
        about = pictures[place].evaluated(evaluations[-1])
        save_picture(out / about.file_name, image, about)

    draw_pictures(
        model,
        [about.prompt for about in pictures],
        [about.seed for about in pictures],
        settings,
        negative_prompts=negative_prompts if any(negative_prompts) else None,
        edit=edit,
        variations=variations or None,
        progress=progress,
        on_evaluated=evaluations.append,
        on_drawn=save,
    )


def save_picture(path: Path, image: NDArray[np.uint8], about: PictureMetadata) -> None:
    """A picture as PNG with how it was made, as JSON and as other tools read it.

    Raises:
        UserError: the file cannot be written.
    """
    save_png(path, image, to_json(about), parameters=str(parameters_of(about)))


def refuse_file(out: Path) -> None:
    """Pass if `out` may be a folder of pictures; to tell before minutes of drawing, not after.

    Raises:
        UserError: it is a file, or nothing can be written there.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UserError(f"{out} is a file, not a folder; choose another place for the pictures")
    refuse_unwritable(out / "picture.png")
    nearest = next(folder for folder in (out, *out.absolute().parents) if os.path.isdir(folder))
    try:
        # What permissions allow, a file system may refuse, as /proc does.
        with TemporaryDirectory(prefix=".tmp-", dir=nearest):
            pass
    except OSError as error:
        raise explain_os_error(error, out, "write pictures to") from error
