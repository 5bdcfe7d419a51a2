"""What a file or folder of weights is: its parts, each with layout, configuration and tensors.

Recognised from the tensors' names and shapes alone; nothing but headers is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectiflow.base.cache import cached_sha256
from rectiflow.base.config import from_json
from rectiflow.base.errors import CheckpointError, ConfigError
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.layers.embeddings import TIME_SCALE
from rectiflow.models.mmdit import MMDiT, MMDiTConfig, MMDiTXConfig
from rectiflow.models.published.configs import (
    NetworkConfig,
    entries_of,
    infer_autoencoder_config,
    infer_mmdit_config,
    layout_shapes,
)
from rectiflow.models.published.given import check_sizes
from rectiflow.models.published.header import read_safetensors
from rectiflow.models.published.names import Layout
from rectiflow.models.published.stored import HEADER_NAMES, FileBytes, StoredTensor
from rectiflow.models.published.text_configs import (
    POSITION_IDS,
    CLIPTextSize,
    T5TextSize,
    infer_text_size,
)

PartConfig = NetworkConfig | CLIPTextSize | T5TextSize

#: Where a single file keeps a part.
PREFIXES = {
    "mmdit": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
    "t5": "text_encoders.t5xxl.transformer.",
}
#: The folder of a pipeline that says how times are shifted, and the class that it is for.
SCHEDULER, SCHEDULER_CLASS = "scheduler", "FlowMatchEulerDiscreteScheduler"
PART_TITLES = {
    "mmdit": "MM-DiT",
    "autoencoder": "autoencoder",
    "clip_l": "text encoder CLIP-L",
    "clip_g": "text encoder CLIP-G",
    "t5": "text encoder T5",
}
#: Tensors that only a part of this layout has, for files that hold one part without a prefix.
_MARKS: tuple[tuple[str, str, Layout], ...] = (
    ("joint_blocks.0.x_block.", "mmdit", "sai"),
    ("transformer_blocks.0.attn.add_q_proj.", "mmdit", "diffusers"),
    ("decoder.up.0.block.", "autoencoder", "sai"),
    ("decoder.up_blocks.0.resnets.", "autoencoder", "diffusers"),
    ("encoder.block.0.layer.0.SelfAttention.", "t5", "sai"),
)
_CLIP_MARK = "text_model.final_layer_norm.weight"
_CLIP_G_WIDTH = 1280
#: Of a whole CLIP model, without a part in the text's states.
_CLIP_EXTRAS = ("logit_scale", "logit_bias")
_CHANGES_A_MODEL = "which changes a model and is none by itself; give the model's own file"
OTHER_KIND = (
    "which is another architecture; rectiflow loads SD3-medium, SD3.5-medium, SD3.5-large and "
    "-large-turbo"
)
#: What else is found under the same suffix, by pieces of names; the first that fits is told.
_OTHER_FAMILIES = (
    (("lora_", ".lora.", "hada_w", "lokr_w"), "a LoRA", _CHANGES_A_MODEL),
    (("controlnet_", "control_model."), "a ControlNet", _CHANGES_A_MODEL),
    (("double_blocks.", "single_transformer_blocks."), "a FLUX model", OTHER_KIND),
    (("conditioner.embedders.", "label_emb.", "add_embedding."), "an SDXL model", OTHER_KIND),
    (("input_blocks.", "cond_stage_model."), "a Stable Diffusion 1 or 2 model", OTHER_KIND),
    (("quant_conv.",), "the autoencoder of Stable Diffusion 1, 2 or XL", OTHER_KIND),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network of a checkpoint; `tensors` go by the layout's names, without a prefix."""

    kind: str
    path: Path
    layout: Layout
    config: PartConfig
    tensors: dict[str, StoredTensor]

    def files(self) -> tuple[Path, ...]:
        """The files that its tensors lie in, in the order of names."""
        sources = {
            piece.source.path
            for tensor in self.tensors.values()
            for piece in tensor.ranges
            if isinstance(piece.source, FileBytes)
        }
        return tuple(sorted(sources))

    def sha256(self) -> str:
        """Of one file its own, which other tools name it by too; of several, over theirs.

        Of tensors that lie in memory, as those of shipped parts, over their names and values.
        """
        hashes = [cached_sha256(file) for file in self.files()]
        if len(hashes) == 1:
            return hashes[0]
        whole = hashlib.sha256("".join(hashes).encode())
        if not hashes:
            for name in sorted(self.tensors):
                whole.update(name.encode())
                for block in self.tensors[name].blocks():
                    whole.update(block)
        return whole.hexdigest()

    def own_tensors(self) -> dict[str, StoredTensor]:
        """The tensors by our names; an MM-DiT's "pos_embed" among them."""
        if isinstance(self.config, CLIPTextSize | T5TextSize):
            return self.tensors
        return {
            entry.ours: entry.to_ours(self.layout, self.tensors)
            for entry in entries_of(self.config)
        }

    def in_layout(self, layout: Layout) -> dict[str, StoredTensor]:
        """The tensors by a layout's names."""
        if layout == self.layout or isinstance(self.config, CLIPTextSize | T5TextSize):
            return self.tensors
        found: dict[str, StoredTensor] = {}
        for entry in entries_of(self.config):
            found |= entry.from_ours(layout, entry.to_ours(self.layout, self.tensors))
        return found


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The parts of a file or folder; `unknown` are tensors that belong to none of them.

    `missing` says of parts that a model of ours was trained with why they are not there.
    `tokenizers` is the folder that has those of its text encoders, `scheduler` what diffusers' is
    made from; None where there are none.
    """

    path: Path
    parts: dict[str, Part]
    unknown: tuple[str, ...] = ()
    tokenizers: Path | None = None
    scheduler: Mapping[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def shift(self) -> float | None:
        """How its scheduler shifts times, α of arXiv 2403.03206, section 5.3.2, if it says so.

        None also where the shift follows each picture's size, which then is not in its config.
        """
        config = self.scheduler or {}
        shift = None if config.get("use_dynamic_shifting") else config.get("shift")
        return float(shift) if isinstance(shift, int | float) and shift > 0 else None

    def part(self, kind: str) -> Part:
        """The part of that kind.

        Raises:
            CheckpointError: there is none.
        """
        if kind not in self.parts:
            have = ", ".join(PART_TITLES[found] for found in self.parts)
            raise CheckpointError(
                f"{self.path} holds no {PART_TITLES[kind]}, only: {have}; give the file or folder "
                "that has one"
            )
        return self.parts[kind]


def open_file(path: Path) -> Checkpoint:
    """Recognise a safetensors file.

    Raises:
        UserError: it is missing or unreadable.
        CheckpointError: it is cut, damaged, of another format or family, or lacks tensors.
    """
    file = read_safetensors(path)
    groups, unknown = _split(path, file.tensors)
    parts = {
        kind: recognise_part(
            kind, layout, path, tensors, config=_config_from_metadata(path, kind, file.metadata)
        )
        for kind, (layout, tensors) in groups.items()
    }
    scheduler = _from_metadata(path, SCHEDULER, file.metadata)
    return Checkpoint(path=path, parts=parts, unknown=unknown, scheduler=scheduler)


def _split(
    path: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, tuple[Layout, dict[str, StoredTensor]]], tuple[str, ...]]:
    """The tensors of each part, and the names of those that belong to none."""
    refuse_other_family(path, tensors)
    groups: dict[str, tuple[Layout, dict[str, StoredTensor]]] = {}
    unknown = set(tensors)
    for kind, prefix in PREFIXES.items():
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if own:
            groups[kind] = ("sai", own)
            unknown -= {prefix + name for name in own}
    if not groups:
        for mark, kind, layout in _MARKS:
            if any(name.startswith(mark) for name in tensors):
                return {kind: (layout, dict(tensors))}, ()
        if _CLIP_MARK in tensors:
            kind = "clip_g" if tensors[_CLIP_MARK].shape[:1] >= (_CLIP_G_WIDTH,) else "clip_l"
            extras = tuple(name for name in _CLIP_EXTRAS if name in tensors)
            return {kind: ("sai", {n: t for n, t in tensors.items() if n not in extras})}, extras
        some = ", ".join(sorted(tensors)[:3]) or "none"
        raise CheckpointError(
            f"{path} holds no part of an SD3 model: it has {len(tensors)} tensors, among them "
            f"{some}; {OTHER_KIND.partition('; ')[2]}"
        )
    return groups, tuple(sorted(unknown))


def refuse_other_family(path: Path, names: Mapping[str, Any]) -> None:
    """Pass if no name is a mark of another family of models.

    Raises:
        CheckpointError: one is; the text says of which.
    """
    for pieces, family, reason in _OTHER_FAMILIES:
        if any(piece in name for name in names for piece in pieces):
            raise CheckpointError(f"{path} is {family}, {reason}")


def recognise_part(
    kind: str,
    layout: Layout,
    path: Path,
    tensors: dict[str, StoredTensor],
    *,
    config: PartConfig | None = None,
    given: Mapping[str, Any] | None = None,
) -> Part:
    """A part with its configuration, once every tensor is there in the right shape.

    Args:
        kind: as in `PART_TITLES`.
        layout: whose names the tensors have.
        path: where they come from, for errors.
        tensors: by name, without a prefix.
        config: where it is known already; it is inferred otherwise.
        given: diffusers' config.json, for what tensors do not tell.

    Raises:
        CheckpointError: tensors are missing, too many, of another shape or no floating numbers.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        if empty := next((name for name, shape in shapes.items() if 0 in shape), None):
            raise ValueError(f"{empty} has the shape {list(shapes[empty])}")
        config = _infer_config(kind, layout, shapes, given or {}) if config is None else config
        check_sizes(config, len(tensors))
        wanted = _wanted(config, layout, tensors)
    except KeyError as error:
        raise CheckpointError(
            f"{path} lacks {error.args[0]}, which every {PART_TITLES[kind]} has; fetch it again"
        ) from error
    # torch tells by a RuntimeError or OverflowError that no tensor can be as large.
    except (ValueError, TypeError, IndexError, ConfigError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} holds no {PART_TITLES[kind]} of a known size: {reason}; give a released model "
            "or one of ours"
        ) from error
    _check_tensors(path, _describe(kind, config), tensors, wanted)
    part = Part(kind=kind, path=path, layout=layout, config=config, tensors=tensors)
    try:
        part.own_tensors()
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; fetch the model again") from error
    return part


def _infer_config(
    kind: str, layout: Layout, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]
) -> PartConfig:
    if kind == "mmdit":
        return infer_mmdit_config(shapes, layout, given)
    if kind == "autoencoder":
        return infer_autoencoder_config(shapes, layout, given)
    return infer_text_size(kind, shapes, given)


def _wanted(
    config: PartConfig, layout: Layout, present: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    if isinstance(config, CLIPTextSize | T5TextSize):
        return config.wanted(present)
    return layout_shapes(config, layout)


def _describe(kind: str, config: PartConfig) -> str:
    if isinstance(config, CLIPTextSize | T5TextSize):
        return f"a {PART_TITLES[kind]} of {config.num_layers} layers"
    if isinstance(config, AutoencoderConfig):
        return f"an {PART_TITLES[kind]} with {config.latent_channels} channels"
    return f"an {config.title} of depth {config.depth}"


def _check_tensors(
    path: Path,
    what: str,
    tensors: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(wanted)} tensors of {what}, the first is "
            f"{missing[0]}; fetch the file again"
        )
    extra = [name for name in tensors if name not in wanted]
    if any("scale_weight" in name or "scaled_fp8" in name for name in extra):
        raise CheckpointError(
            f"{path} holds {what} in fp8 with a scale for each matrix, which rectiflow does not "
            "read; give the file in 16 bits, or in plain fp8"
        )
    if extra:
        raise CheckpointError(
            f"{path} has {len(extra)} tensors more than {what}, the first is {extra[0]}; it is a "
            "model of another kind"
        )
    for name, shape in wanted.items():
        found = tensors[name]
        if found.shape != shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {list(found.shape)}, {what} has {list(shape)}; it "
                "is damaged or a model of another kind"
            )
        if not found.dtype.is_floating_point and name != POSITION_IDS:
            raise CheckpointError(
                f"{path}: {name} is stored as {HEADER_NAMES[found.dtype]}, a quantised format; "
                "give the model in F32, F16, BF16 or F8"
            )


def part_of(model: MMDiT | Autoencoder) -> Part:
    """A network in memory as a part of a checkpoint to save; nothing is copied.

    Raises:
        CheckpointError: it has no released layout.
    """
    config = model.config
    assert isinstance(config, MMDiTConfig | AutoencoderConfig)
    tensors = {name: StoredTensor.of(value) for name, value in model.state_dict().items()}
    kind = "autoencoder"
    if isinstance(model, MMDiT):
        kind = "mmdit"
        tensors["pos_embed"] = StoredTensor.of(model.pos_embed.flatten(0, 1)[None])
    released: dict[str, StoredTensor] = {}
    for entry in entries_of(config):
        released |= entry.from_ours("sai", tensors[entry.ours])
    return recognise_part(kind, "sai", Path("memory"), released, config=config)


def scheduler_of(shift: float) -> dict[str, Any]:
    """What diffusers makes SD3's scheduler from, at this shift of times."""
    return {
        "_class_name": SCHEDULER_CLASS,
        "num_train_timesteps": int(TIME_SCALE),
        "shift": shift,
    }


# --- what tensors cannot tell ----------------------------------------------------------------


_CONFIGS: dict[str, tuple[type[Any], ...]] = {
    "mmdit": (MMDiTConfig, MMDiTXConfig),
    "autoencoder": (AutoencoderConfig,),
    "clip_l": (CLIPTextSize,),
    "clip_g": (CLIPTextSize,),
    "t5": (T5TextSize,),
}


def metadata_key(kind: str) -> str:
    """Where a single file's metadata holds a config that its tensors do not tell.

    Of a part, by its kind, or of the scheduler.
    """
    return f"rectiflow.{kind}"


def _config_from_metadata(path: Path, kind: str, metadata: Mapping[str, str]) -> PartConfig | None:
    data = _from_metadata(path, kind, metadata)
    if data is None:
        return None
    try:
        cls = {cls.__name__: cls for cls in _CONFIGS[kind]}[data.pop("kind")]
        return from_json(cls, data)
    except (TypeError, KeyError, ConfigError) as error:
        raise _unreadable(path, kind, error) from error


def _from_metadata(path: Path, kind: str, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    text = metadata.get(metadata_key(kind))
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, kind, error) from error


def _unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} holds a config under {metadata_key(kind)} that cannot be read ({error}); "
        "make the file again"
    )
