"""What a file or folder of weights is, in words, from headers and configs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path

from rectiflow.models.autoencoder import AutoencoderConfig
from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.model_folder import is_own_model
from rectiflow.models.published.checkpoint import PART_TITLES, Part, PartConfig
from rectiflow.models.published.configs import RELEASED
from rectiflow.models.published.folder import open_checkpoint
from rectiflow.models.published.own import OwnModel, open_own_model
from rectiflow.models.published.stored import HEADER_NAMES, StoredTensor
from rectiflow.models.published.text_configs import RELEASED_TEXT

_LAYOUTS = {"sai": "Stability AI's single-file names", "diffusers": "diffusers' names"}
_MAX_UNKNOWN = 3


def describe_checkpoint(path: Path | str) -> str:
    """Lines that say what is there, how large and of which types, and what a picture still needs.

    Raises:
        UserError: as `open_checkpoint`.
    """
    if is_own_model(path):
        return "\n".join([f"{path}", *_describe_own(open_own_model(path))])
    checkpoint = open_checkpoint(path)
    lines = [f"{path}"]
    for part in checkpoint.parts.values():
        lines += _describe_part(part)
    missing = [title for kind, title in PART_TITLES.items() if kind not in checkpoint.parts]
    lines.append("")
    lines.append(f"not in it: {', '.join(missing)}" if missing else "every part is there")
    if checkpoint.unknown:
        some = ", ".join(checkpoint.unknown[:_MAX_UNKNOWN])
        lines.append(f"of no part: {len(checkpoint.unknown)} tensors, among them {some}")
    return "\n".join(lines)


def _describe_part(part: Part) -> list[str]:
    # The position grid is no weight.
    weights = [t for name, t in part.own_tensors().items() if name != "pos_embed"]
    return _describe(
        _title(part),
        names=_LAYOUTS[part.layout],
        num_parameters=sum(tensor.num_elements for tensor in weights),
        tensors=part.tensors.values(),
        config=part.config,
    )


def _describe_own(model: OwnModel) -> list[str]:
    return _describe(
        f"{model.card.backbone.title}, trained by rectiflow",
        names="rectiflow's",
        num_parameters=sum(tensor.num_elements for tensor in model.tensors.values()),
        tensors=model.tensors.values(),
        config=model.card.backbone,
    )


def _describe(
    title: str,
    *,
    names: str,
    num_parameters: int,
    tensors: Collection[StoredTensor],
    config: PartConfig | BackboneConfig,
) -> list[str]:
    rows = {
        "names": names,
        "tensors": f"{len(tensors):,}",
        "parameters": f"{num_parameters:,}",
        "size": f"{sum(tensor.num_bytes for tensor in tensors) / 1e9:.3f} GB",
        "types": _describe_types(HEADER_NAMES[tensor.dtype] for tensor in tensors),
    }
    for field in fields(config):
        if (value := getattr(config, field.name)) is not None:
            rows[field.name] = str(value)
    return ["", title, *(f"  {name:<20} {value}" for name, value in rows.items())]


def _title(part: Part) -> str:
    """The part's name, and which released model has its sizes."""
    config, title = part.config, PART_TITLES[part.kind]
    if isinstance(config, MMDiTConfig):
        same = next((name for name, released in RELEASED.items() if released == config), None)
        return f"{config.title}, as {same}" if same else f"{config.title}, of no released size"
    same = config == (RELEASED_TEXT | {"autoencoder": AutoencoderConfig()})[part.kind]
    return f"{title}, as released with SD3" if same else f"{title}, of no released size"


def _describe_types(names: Iterable[str]) -> str:
    """ "F16", or how many tensors have which type."""
    counts = Counter(names)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())
