"""Released SD3 weights as a `Model`: which parts, from where, in which number type.

First stop on the walk of a prompt, where the model is not one of ours. The parts may lie in one
file or folder, or each somewhere else; single files hold no tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.flow import rectified_flow
from rectiflow.flow.shift import NO_SHIFT
from rectiflow.generation.drawn_with import read_drawn_with
from rectiflow.generation.frozen_parts import FrozenParts
from rectiflow.generation.load_settings import PLACES, LoadedParts, LoadSettings
from rectiflow.generation.model import Model, WeakerModel
from rectiflow.generation.settings import SamplingSettings
from rectiflow.models.autoencoder import AutoencoderConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.parts_source import PartsSource
from rectiflow.models.precision import DTYPES, compute_dtype
from rectiflow.models.published import (
    PART_TITLES,
    RELEASED,
    Checkpoint,
    Part,
    build_autoencoder,
    build_mmdit,
    open_checkpoint,
)
from rectiflow.models.published.checkpoint import SCHEDULER, SCHEDULER_CLASS
from rectiflow.models.published.components import SCHEDULER_FILE
from rectiflow.models.published.text_loading import StoredEncoders, find_text_encoders
from rectiflow.models.text.cache import CachedConditioner
from rectiflow.models.text.conditioner import FOLDERS, bare_tokenizers
from rectiflow.models.text.encoded import ENCODERS
from rectiflow.sampling import DPMSolverPP2M, DynamicShiftGrid, Euler, ReleasedGrid
from rectiflow.sampling.schedule import NUM_TRAINING_TIMES

#: As Stability's own code samples each; shift 3 for SD3-medium too, as all code but one has it.
_SAMPLING = SamplingSettings(
    num_steps=50, guidance_scale=5.0, shift=3.0, solver=DPMSolverPP2M(), grid=ReleasedGrid()
)
RELEASED_SAMPLING = {
    "SD3-medium": _SAMPLING,
    "SD3.5-medium": _SAMPLING,
    "SD3.5-large": replace(_SAMPLING, num_steps=40, guidance_scale=4.5),
    "SD3.5-large-turbo": replace(_SAMPLING, num_steps=4, guidance_scale=1.0, solver=Euler()),
}
(_FEW, _FEW_MU), (_MANY, _MANY_MU) = DynamicShiftGrid.FEW, DynamicShiftGrid.MANY
_DYNAMIC_OPTIONS = {
    "base_shift": (_FEW_MU,),
    "max_shift": (_MANY_MU,),
    "base_image_seq_len": (_FEW,),
    "max_image_seq_len": (_MANY,),
    "time_shift_type": ("exponential",),
}
#: Options of a folder's scheduler, and the values that are followed; others must be off.
_SCHEDULER_OPTIONS = _DYNAMIC_OPTIONS | {
    "_class_name": (SCHEDULER_CLASS, "FlowMatchHeunDiscreteScheduler"),
    "num_train_timesteps": (NUM_TRAINING_TIMES,),
    "use_dynamic_shifting": (True,),
}
_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


def load_released(path: Path | str, settings: LoadSettings) -> Model:
    """A model from released files, as `load_model` does.

    Raises:
        UserError: a part or the tokenizers are nowhere; the text says which option gives them.
        CheckpointError: a file is cut, damaged or of another family.
    """
    checkpoint = open_checkpoint(path)
    mmdit = checkpoint.part("mmdit")
    assert isinstance(mmdit.config, MMDiTConfig)
    drawn_with = read_drawn_with(checkpoint.path)
    if drawn_with is not None:
        settings = drawn_with.fill_in(settings)
    # What is missing is told before gigabytes are read.
    found = _find_parts(checkpoint, settings, mmdit.config.context_dim)
    _refuse_misfits(mmdit, found.decoding, found.stored)
    alone = _backbone_of(mmdit, path, settings)
    parts = _load_parts(checkpoint, found, settings)
    name = name_released(mmdit.config, path)
    usual = RELEASED_SAMPLING.get(name or "", _SAMPLING)
    if drawn_with is not None:
        usual = SamplingSettings(**vars(drawn_with.sampling))
    sampling = _sampling(checkpoint, usual)
    side_px = (
        mmdit.config.base_side
        * mmdit.config.patch_size
        * parts.autoencoder.config.downsample_factor
    )
    return Model(
        name=alone.name,
        digest=alone.digest,
        backbone=alone.backbone,
        formulation=alone.formulation,
        autoencoder=parts.autoencoder,
        conditioner=parts.conditioner,
        settings=replace(sampling, height_px=side_px, width_px=side_px),
        world=None,
        resolution_px=side_px,
        provenance={"released": name},
        source=parts.source,
        parts=parts.loaded,
        # Held in what they are multiplied in.
        uses_autocast=False,
    )


def load_released_parts(
    path: Path | str, settings: LoadSettings, *, context_dim: int | None = None
) -> FrozenParts:
    """The frozen parts alone; whether there is a backbone beside them does not matter.

    `context_dim` is the width of T5's zeros where there is no T5; the backbone's or SD3's if None.

    Raises:
        UserError, CheckpointError: as `load_released`.
    """
    checkpoint = open_checkpoint(path)
    drawn_with = read_drawn_with(checkpoint.path)
    if drawn_with is not None:
        settings = drawn_with.fill_in(settings)
    beside = checkpoint.parts.get("mmdit")
    if context_dim is None and beside is not None and isinstance(beside.config, MMDiTConfig):
        context_dim = beside.config.context_dim
    return _load_parts(checkpoint, _find_parts(checkpoint, settings, context_dim), settings)


@dataclass(frozen=True, kw_only=True)
class _FoundParts:
    decoding: Part
    stored: StoredEncoders


def _find_parts(
    checkpoint: Checkpoint, settings: LoadSettings, context_dim: int | None
) -> _FoundParts:
    return _FoundParts(
        decoding=_part_from(checkpoint, settings.autoencoder, "autoencoder", "--autoencoder"),
        stored=_text_encoders(checkpoint, settings, context_dim),
    )


def _load_parts(checkpoint: Checkpoint, found: _FoundParts, settings: LoadSettings) -> FrozenParts:
    stored, identity = found.stored, found.stored.identity()
    precision = _PRECISIONS[_dtype(settings)]
    given = {name: getattr(settings, name) for name in PLACES}
    return FrozenParts(
        autoencoder=build_autoencoder(found.decoding, dtype=torch.float32),
        conditioner=CachedConditioner(
            config=stored.config,
            tokenizers=bare_tokenizers(stored.tokenizers),
            sizes=stored.sizes,
            identity=identity,
            load=stored.load,
            fingerprints=stored.fingerprints(),
        ),
        source=PartsSource(
            # Absolute, so that what is trained on them may go on anywhere.
            model=str(checkpoint.path.resolve()),
            **{name: str(Path(place).resolve()) for name, place in given.items() if place},
            encoders=tuple(stored.parts),
            t5_tokens=stored.config.t5.length,
            precision=precision,
        ),
        loaded=LoadedParts(
            encoders=tuple(stored.parts),
            t5_tokens=stored.config.t5.length,
            precision=precision,
            text_sha256=identity,
            autoencoder_sha256=found.decoding.sha256(),
        ),
    )


def _refuse_misfits(mmdit: Part, decoding: Part, stored: StoredEncoders) -> None:
    config, text = mmdit.config, stored.config
    assert isinstance(config, MMDiTConfig)
    assert isinstance(decoding.config, AutoencoderConfig)
    channels = decoding.config.latent_channels
    if channels != config.latent_channels:
        raise UserError(
            f"{decoding.path} is an autoencoder of {channels} latent channels, {mmdit.path} draws "
            f"{config.latent_channels}; give the one that it was trained with (--autoencoder)"
        )
    widths = (text.context_dim, text.pooled_dim)
    if stored.parts and widths != (config.context_dim, config.pooled_dim):
        where = ", ".join(sorted({str(part.path) for part in stored.parts.values()}))
        raise UserError(
            f"the text encoders of {where} give tokens of {widths[0]} numbers and a pooled vector "
            f"of {widths[1]}, {mmdit.path} reads {config.context_dim} and {config.pooled_dim}; "
            "give those that it was trained with (--text-encoders)"
        )


def load_released_backbone(path: Path | str, settings: LoadSettings) -> WeakerModel:
    """The backbone alone, in the settings' precision.

    Raises:
        CheckpointError: as `load_released`, or there is no backbone in it.
    """
    return _backbone_of(open_checkpoint(path).part("mmdit"), path, settings)


def _backbone_of(part: Part, path: Path | str, settings: LoadSettings) -> WeakerModel:
    return WeakerModel(
        name=str(path),
        digest=part.sha256(),
        backbone=build_mmdit(part, dtype=_dtype(settings)).requires_grad_(False),
        formulation=rectified_flow(),
    )


def _sampling(checkpoint: Checkpoint, sampling: SamplingSettings) -> SamplingSettings:
    """The usual sampling, with the times of the folder's own scheduler, if any.

    Raises:
        CheckpointError: the scheduler is told to do what no grid here does.
    """
    scheduler = checkpoint.scheduler or {}
    is_dynamic = bool(scheduler.get("use_dynamic_shifting"))
    for option, value in scheduler.items():
        usual = _SCHEDULER_OPTIONS.get(option)
        has_no_effect = option in _DYNAMIC_OPTIONS and not is_dynamic
        # What begins with an underscore is about the file, but for the class.
        is_any_value = option == "shift" or (option.startswith("_") and usual is None)
        is_followed = is_any_value or (usual is not None and value in usual)
        if not (is_followed or has_no_effect or value is None or value is False):
            raise CheckpointError(
                f"{checkpoint.path}: its scheduler has {option}={value!r}, which rectiflow does "
                f"not follow ({f'it knows {usual}' if usual else 'it knows no such option'}); "
                f"take it out of the folder's {SCHEDULER}/{SCHEDULER_FILE}, before a conversion if "
                "there was one, and choose times by --grid and --solver"
            )
    if is_dynamic:
        return replace(sampling, shift=NO_SHIFT.alpha, grid=DynamicShiftGrid())
    return sampling if checkpoint.shift is None else replace(sampling, shift=checkpoint.shift)


def name_released(config: MMDiTConfig, path: Path | str) -> str | None:
    """Which released model has these sizes.

    The turbo model has those of the large one; the last name in its whole path that says "large" or
    "turbo" tells which it is, and the large one where none does.
    """
    name = next((name for name, released in RELEASED.items() if released == config), None)
    if name is None or not name.startswith("SD3.5-large"):
        return name
    names = (part.lower() for part in reversed(Path(path).resolve().parts))
    telling = next((part for part in names if "large" in part or "turbo" in part), "")
    return "SD3.5-large-turbo" if "turbo" in telling else "SD3.5-large"


def _part_from(checkpoint: Checkpoint, other: Path | None, kind: str, option: str) -> Part:
    if other is not None:
        return open_checkpoint(other).part(kind)
    if kind not in checkpoint.parts:
        raise UserError(
            f"{checkpoint.path} comes without the {PART_TITLES[kind]}; give a file or folder that "
            f"has one ({option})"
        )
    return checkpoint.part(kind)


def _text_encoders(
    checkpoint: Checkpoint, settings: LoadSettings, context_dim: int | None
) -> StoredEncoders:
    where = settings.text_encoders
    source = open_checkpoint(where) if where is not None else checkpoint
    present = tuple(name for name in ENCODERS if name in source.parts)
    chosen = present if settings.encoders is None else settings.encoders
    if not present and settings.encoders != ():
        raise UserError(
            f"{source.path} comes without text encoders; give a file or folder that has some "
            "(--text-encoders)"
        )
    t5_tokens = settings.t5_tokens
    if t5_tokens is None and "t5" not in chosen:
        # Left out, it is left out of the sequence too, unless zeros are asked for.
        t5_tokens = 0
    return find_text_encoders(
        source,
        tokenizers=_tokenizer_folder(checkpoint, source, settings) if chosen else None,
        encoders=chosen,
        t5_tokens=t5_tokens,
        dtype=_dtype(settings),
        context_dim=context_dim,
    )


def find_tokenizers(
    checkpoint: Checkpoint, source: Checkpoint, settings: LoadSettings
) -> Path | None:
    """The folder of the tokenizers for the text encoders of `source`, with a model's own last."""
    folders = (settings.tokenizers, source.tokenizers, checkpoint.tokenizers)
    return next((folder for folder in folders if folder is not None), None)


def _tokenizer_folder(checkpoint: Checkpoint, source: Checkpoint, settings: LoadSettings) -> Path:
    folder = find_tokenizers(checkpoint, source, settings)
    if folder is None:
        raise UserError(
            f"{source.path} comes without tokenizers; give the folder of a released model, which "
            f"holds {', '.join(tokenizer for _, tokenizer in FOLDERS.values())} (--tokenizers)"
        )
    return folder


def _dtype(settings: LoadSettings) -> torch.dtype:
    if settings.precision == "auto":
        return compute_dtype("auto", settings.device or "cpu")
    # As asked, even where the processor is slow at it: it halves the memory.
    return DTYPES[settings.precision]
