"""Networks into released layouts: one file as Stability AI's, or a folder as diffusers'.

What a layout has no place for in its tensors stands beside them: in the folder's config.json, in
the single file's metadata. Values are copied as bytes, whatever their type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rectiflow.base.config import to_json
from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import atomic_directory, link_tree, write_json
from rectiflow.models.autoencoder import AutoencoderConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.model_folder import PIPELINE_FILE
from rectiflow.models.published.checkpoint import (
    PREFIXES,
    SCHEDULER,
    SCHEDULER_CLASS,
    Checkpoint,
    Part,
    metadata_key,
    recognise_part,
)
from rectiflow.models.published.components import (
    COMPONENTS,
    CONFIG_FILE,
    IDENTITY_KEY,
    SCHEDULER_FILE,
    read_object,
)
from rectiflow.models.published.folder import open_checkpoint
from rectiflow.models.published.header import SUFFIX
from rectiflow.models.published.stored import StoredTensor, write_safetensors
from rectiflow.models.published.text_configs import PROJECTION, CLIPTextSize, T5TextSize
from rectiflow.models.text.conditioner import FOLDERS

#: The first version of diffusers that knows all released models.
_DIFFUSERS_VERSION = "0.31.0"
#: Classes of transformers by a tokenizer's encoder, for a folder whose index does not say.
_TOKENIZERS = {"clip_l": "CLIPTokenizer", "clip_g": "CLIPTokenizer", "t5": "T5TokenizerFast"}
#: Those that are nothing but their `tokenizer.json`, by a name that all versions know.
_GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
_GENERIC_NAMES = (_GENERIC_TOKENIZER, "TokenizersBackend")


def convert(source: Path | str, target: Path | str) -> Checkpoint:
    """Copy a checkpoint into another layout; returns what was recognised of the source.

    A target that ends in ".safetensors" becomes a single file, any other a diffusers folder.

    Raises:
        UserError: the source is missing, or the target exists or cannot be written.
        CheckpointError: the source is damaged, incomplete or of another family.
    """
    checkpoint, target = open_checkpoint(source), Path(target)
    if target.suffix == SUFFIX:
        save_single_file(target, checkpoint.parts, scheduler=checkpoint.scheduler)
    else:
        save_diffusers_folder(
            target,
            checkpoint.parts,
            tokenizers=checkpoint.tokenizers,
            scheduler=checkpoint.scheduler,
        )
    return checkpoint


def save_single_file(
    path: Path | str,
    parts: Mapping[str, Part],
    *,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write the parts as one file in Stability AI's layout.

    `scheduler` is the config of diffusers' one, which has the shift of times.

    Raises:
        UserError: the file exists or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"cannot write {path}: it exists; choose another place or remove it")
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for kind, part in parts.items():
        own = part.in_layout("sai")
        tensors |= {PREFIXES[kind] + name: tensor for name, tensor in own.items()}
        if not _tells_its_config(part, own):
            config = {"kind": type(part.config).__name__} | to_json(part.config)
            metadata[metadata_key(kind)] = json.dumps(config)
    if scheduler is not None:
        metadata[metadata_key(SCHEDULER)] = json.dumps(scheduler)
    write_safetensors(path, tensors, metadata)


def _tells_its_config(part: Part, tensors: dict[str, StoredTensor]) -> bool:
    try:
        return recognise_part(part.kind, "sai", part.path, tensors).config == part.config
    except CheckpointError:
        return False


def save_diffusers_folder(
    folder: Path | str,
    parts: Mapping[str, Part],
    *,
    tokenizers: Path | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Write the parts as the folder of a diffusers pipeline, complete or not at all.

    `tokenizers` is a folder with `tokenizer` and its like, `scheduler` the config of one.

    Raises:
        UserError: the folder is not empty or cannot be written, or a tokenizer has no config.
        CheckpointError: a tokenizer's config is no such.
    """
    # Before gigabytes are written.
    classes = {} if tokenizers is None else _tokenizer_classes(tokenizers)
    with atomic_directory(folder) as unfinished:
        index: dict[str, Any] = {
            "_class_name": _pipeline_class(parts),
            "_diffusers_version": _DIFFUSERS_VERSION,
        }
        for kind, part in parts.items():
            name, stem = COMPONENTS[kind]
            config, tensors = component_config(part), part.in_layout("diffusers")
            metadata = {"format": "pt"}
            if isinstance(part.config, CLIPTextSize) and PROJECTION not in tensors:
                # transformers would fill it with random numbers; a single file goes without.
                like = next(iter(tensors.values()))
                eye = torch.eye(part.config.pooled_dim, dtype=torch.float32).to(like.dtype)
                tensors = tensors | {PROJECTION: StoredTensor.of(eye)}
                metadata[IDENTITY_KEY] = PROJECTION
            write_json(unfinished / name / CONFIG_FILE, config)
            write_safetensors(unfinished / name / f"{stem}{SUFFIX}", tensors, metadata)
            index[name] = (
                ["diffusers", config["_class_name"]]
                if "_class_name" in config
                else ["transformers", config["architectures"][0]]
            )
        if tokenizers is not None:
            for name in classes:
                link_tree(tokenizers / name, unfinished / name)
        index |= classes
        if scheduler is not None:
            write_json(unfinished / SCHEDULER / SCHEDULER_FILE, scheduler)
            index[SCHEDULER] = ["diffusers", scheduler.get("_class_name", SCHEDULER_CLASS)]
        write_json(unfinished / PIPELINE_FILE, index)


def _tokenizer_classes(source: Path) -> dict[str, list[str]]:
    """The tokenizers that a folder has, each with its class of transformers, for an index."""
    known = read_object(source / PIPELINE_FILE) if (source / PIPELINE_FILE).is_file() else {}
    index: dict[str, list[str]] = {}
    for encoder, (_, name) in FOLDERS.items():
        if not (source / name).is_dir():
            continue
        own = read_object(source / name / "tokenizer_config.json").get("tokenizer_class")
        usual = _GENERIC_TOKENIZER if own in _GENERIC_NAMES else _TOKENIZERS[encoder]
        index[name] = known.get(name, ["transformers", usual])
    return index


def _pipeline_class(parts: Mapping[str, Part]) -> str:
    config = parts["mmdit"].config if "mmdit" in parts else None
    is_inpainting = isinstance(config, MMDiTConfig) and config.is_inpainting
    return f"StableDiffusion3{'Inpaint' if is_inpainting else ''}Pipeline"


def component_config(part: Part) -> dict[str, Any]:
    """The config.json of a part's component, as diffusers or transformers writes it."""
    if isinstance(part.config, CLIPTextSize | T5TextSize):
        return part.config.to_transformers()
    if isinstance(part.config, AutoencoderConfig):
        return _autoencoder_config(part.config)
    return _mmdit_config(part.config)


def _mmdit_config(config: MMDiTConfig) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "attention_head_dim": config.head_dim,
        "caption_projection_dim": config.hidden_dim,
        "dual_attention_layers": list(range(config.num_second_attentions)),
        "in_channels": config.in_channels,
        "joint_attention_dim": config.context_dim,
        "num_attention_heads": config.hidden_dim // config.head_dim,
        "num_layers": config.depth,
        "out_channels": config.latent_channels,
        "patch_size": config.patch_size,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": config.position_side,
        "qk_norm": "rms_norm" if config.use_qk_norm else None,
        "sample_size": config.base_side * config.patch_size,
    }


def _autoencoder_config(config: AutoencoderConfig) -> dict[str, Any]:
    num_levels = len(config.channel_multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": [config.base_channels * m for m in config.channel_multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "force_upcast": True,
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.num_blocks,
        "mid_block_add_attention": config.use_mid_attention,
        "norm_num_groups": config.num_norm_groups,
        "out_channels": config.image_channels,
        "sample_size": 1024,
        "scaling_factor": config.latent_scale,
        "shift_factor": config.latent_shift,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }
