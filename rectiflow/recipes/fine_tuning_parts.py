"""What a fine-tuning run needs before it trains: latents, prior pictures, a pipeline's other parts.

All are made once, in the run's `prepared/`, and kept.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rectiflow.base.files import atomic_write, link_tree, read_json, write_json
from rectiflow.data.encode import encode_folder
from rectiflow.data.folder import FolderListing, list_folder
from rectiflow.generation.drawn_with import DrawnWith
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.model import Model
from rectiflow.generation.pictures import encode_png
from rectiflow.generation.released import find_tokenizers
from rectiflow.generation.settings import CardSampling
from rectiflow.generation.text_to_image import generate
from rectiflow.models.model_folder import PIPELINE_FILE
from rectiflow.models.published import (
    Checkpoint,
    Part,
    open_checkpoint,
    save_diffusers_folder,
    scheduler_of,
)
from rectiflow.models.published.components import COMPONENTS
from rectiflow.models.text.conditioner import FOLDERS
from rectiflow.recipes.encoding import uncached
from rectiflow.recipes.fine_tuning_request import FineTuning, hash_prior
from rectiflow.recipes.progress import Counter
from rectiflow.training.export_fine_tuned import PARTS_FOLDER
from rectiflow.training.recipe import TrainRecipe

_CHUNK = 4


def prepare(
    request: FineTuning,
    model: Model,
    recipe: TrainRecipe,
    prepared: Path,
    *,
    listing: FolderListing,
    prior: FolderListing | None,
    progress: bool,
) -> None:
    """Draw and encode what is missing; a stopped call is continued by the next one.

    `listing` and `prior` are what the request's folders hold.

    Raises:
        UserError: no picture can be used, or something cannot be written.
        StoreError: a store was begun by other encoders or at another resolution.
        CheckpointError: a part of the model is damaged.
    """
    sources = [(listing, "store")]
    if prior is not None:
        sources.append((prior, "prior_store"))
    elif request.prior_count is not None and request.prior_prompt is not None:
        # Named after what made them: another model's or prompt's pictures are left alone.
        drawn = prepared / f"prior_{(hash_prior(request, None, model) or '')[:8]}"
        draw_prior(
            model,
            drawn,
            prompt=request.prior_prompt,
            count=request.prior_count,
            seed=request.seed,
            progress=progress,
        )
        sources.append((list_folder(drawn, caption=request.prior_prompt), "prior_store"))
    encoder, side_px = uncached(model.conditioner), model.resolution_px
    for folder, store in sources:
        with Counter("pictures and captions") if progress else nullcontext() as count:
            report = encode_folder(
                folder,
                prepared / store,
                model.autoencoder,
                encoder,
                resolution_px=side_px,
                parts=model.source,
                progress=count,
            )
        if progress:
            print(report)
    if recipe.export_layout == "diffusers":
        prepare_pipeline(model, request.model, request.load, prepared.parent / PARTS_FOLDER)


def draw_prior(
    model: Model, folder: Path, *, prompt: str, count: int, seed: int, progress: bool = True
) -> None:
    """Draw what the model itself makes of a class: PNG files by number, those that are not there.

    Source: arXiv 2208.12242, section 3.3 (the prior's pictures are the frozen model's own).

    Raises:
        UserError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [i for i in range(count) if not (folder / f"{i:05d}.png").exists()]
    if not places:
        return
    with Counter("prior pictures") if progress else nullcontext() as counted:
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            images = generate(model, [prompt] * len(chunk), [seed + i for i in chunk])
            for i, image in zip(chunk, images, strict=True):
                with atomic_write(folder / f"{i:05d}.png") as file:
                    file.write(encode_png(image))
            if counted is not None:
                counted(start + len(chunk), len(places))


def at_size(model: Model, side_px: int) -> Model:
    """The model, drawing squares of this side."""
    settings = replace(model.settings, height_px=side_px, width_px=side_px)
    return replace(model, settings=settings, resolution_px=side_px)


def prepare_pipeline(model: Model, source: str, settings: LoadSettings, target: Path) -> None:
    """Make the folder of a model's diffusers pipeline without its MM-DiT, unless it is there.

    `model` was loaded from `source` by `settings`. Files of weights that lie in a pipeline's folder
    already are linked to, where the disk can.

    Raises:
        UserError: it cannot be written.
        CheckpointError: a part is damaged.
    """
    if (target / PIPELINE_FILE).is_file():
        return
    checkpoint = open_checkpoint(source)
    with_text = checkpoint
    if settings.text_encoders is not None:
        with_text = open_checkpoint(settings.text_encoders)
    parts = _other_parts(checkpoint, settings)
    linked = {kind: part for kind, part in parts.items() if _is_component(kind, part)}
    copied = {kind: part for kind, part in parts.items() if kind not in linked}
    fresh = target.with_name(f".{target.name}.tmp-new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_diffusers_folder(
        fresh,
        copied,
        tokenizers=find_tokenizers(checkpoint, with_text, settings),
        scheduler=checkpoint.scheduler or scheduler_of(model.settings.shift),
    )
    index: dict[str, Any] = read_json(fresh / PIPELINE_FILE)
    for kind, part in linked.items():
        name = COMPONENTS[kind][0]
        link_tree(part.path, fresh / name)
        index[name] = read_json(part.path.parent / PIPELINE_FILE)[name]
    write_json(fresh / PIPELINE_FILE, index)
    assert model.source is not None  # as of all released weights
    sampling = {each.name: getattr(model.settings, each.name) for each in fields(CardSampling)}
    DrawnWith(
        sampling=CardSampling(**sampling),
        encoders=model.source.encoders,
        t5_tokens=model.source.t5_tokens,
    ).save(fresh)
    fresh.rename(target)


def _other_parts(checkpoint: Checkpoint, settings: LoadSettings) -> dict[str, Part]:
    parts = {kind: part for kind, part in checkpoint.parts.items() if kind != "mmdit"}
    if settings.autoencoder is not None:
        parts["autoencoder"] = open_checkpoint(settings.autoencoder).part("autoencoder")
    if settings.text_encoders is not None:
        given = open_checkpoint(settings.text_encoders).parts
        parts |= {kind: part for kind, part in given.items() if kind in FOLDERS}
    return parts


def _is_component(kind: str, part: Part) -> bool:
    """Whether a part lies in a pipeline's folder as diffusers saves it."""
    return part.path.name == COMPONENTS[kind][0] and (part.path.parent / PIPELINE_FILE).is_file()
