"""Writes a `Lora` as a file that other tools read: in diffusers' layout, or in kohya's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from rectiflow.base.errors import UserError
from rectiflow.models.lora.homes import (
    DIFFUSERS_PREFIXES,
    KOHYA_PREFIXES,
    WEIGHT,
    Matrix,
    mmdit_matrices,
)
from rectiflow.models.lora.low_rank import Lora, LowRank, stack_pairs
from rectiflow.models.lora.peft_config import peft_metadata
from rectiflow.models.lora.reading import PAIRS_KEY
from rectiflow.models.published.stored import StoredTensor, write_safetensors

LoraLayout = Literal["diffusers", "kohya"]


def save_lora(path: Path | str, lora: Lora, layout: LoraLayout = "diffusers") -> None:
    """Write a LoRA in float32, whole or not at all; reading it gives an equal one.

    "diffusers" is what `load_lora_weights` of diffusers reads, with alpha in PEFT's config in the
    metadata; "kohya" is what kohya's scripts, ComfyUI and Forge read, with alpha beside each pair.

    Raises:
        UserError: the file exists or cannot be written, or the layout has no place for a part.
    """
    path = Path(path)
    if layout not in get_args(LoraLayout):
        raise UserError(
            f"unknown LoRA layout {layout!r}; choose among {', '.join(get_args(LoraLayout))}"
        )
    if path.exists():
        raise UserError(f"cannot write {path}: it exists; choose another place or remove it")
    tensors, metadata = _in_diffusers(lora) if layout == "diffusers" else _in_kohya(lora)
    stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
    write_safetensors(path, stored, metadata)


def _in_diffusers(lora: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    if "t5" in lora.parts:
        raise UserError(
            "diffusers loads no LoRA of T5; save it with layout='kohya', or leave T5 out with "
            "lora.only(...)"
        )
    tensors: dict[str, Tensor] = {}
    modules: dict[str, dict[str, tuple[int, float]]] = {}
    for part, name, pairs in lora.updates():
        prefix = DIFFUSERS_PREFIXES[part]
        matrix = _matrix(lora, part, name)
        for module, pair in _diffusers_modules(name, pairs, matrix):
            down, up = _as_stored(pair.down, pair.up, matrix)
            tensors[f"{prefix}{module}.lora_A.weight"] = down
            tensors[f"{prefix}{module}.lora_B.weight"] = up
            own = modules.setdefault(prefix.removesuffix("."), {})
            own[module] = (pair.rank, pair.alpha)
    return tensors, peft_metadata(modules)


def _diffusers_modules(
    name: str, pairs: Sequence[LowRank], matrix: Matrix | None
) -> list[tuple[str, LowRank]]:
    """diffusers' modules of a parameter with the pair of each, rows in its order."""
    if matrix is None:
        return [(name.removesuffix(WEIGHT), pair) for pair in pairs]
    names = matrix.entry.diffusers
    if len(names) == 1:
        ((theirs, up),) = matrix.entry.from_ours("diffusers", StoredTensor.of(pairs[0].up)).items()
        pair = pairs[0]
        whole = LowRank(down=pair.down, up=up.load(), alpha=pair.alpha)
        return [(theirs.removesuffix(WEIGHT), whole)]
    unit = matrix.num_rows // len(names)
    return [
        (names[first // unit].removesuffix(WEIGHT), pair.take(range(first, first + unit)))
        for pair in pairs
        for first in range(pair.first_row, pair.rows.stop, unit)
    ]


def _in_kohya(lora: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    stacked: dict[str, list[tuple[int, int, int, float]]] = {}
    for part, name, pairs in lora.updates():
        matrix = _matrix(lora, part, name)
        ours = name if matrix is None else matrix.entry.sai
        module = KOHYA_PREFIXES[part] + ours.removesuffix(WEIGHT).replace(".", "_")
        down, up, alpha = pairs[0].down, pairs[0].up, pairs[0].alpha
        if matrix is not None and up.shape[0] != matrix.num_rows:
            # It has one pair and one alpha for queries, keys and values together.
            if any(pair.scale != pairs[0].scale for pair in pairs):
                scales = ", ".join(f"{pair.scale:g}" for pair in pairs)
                raise UserError(
                    f"{name} scales its rows by {scales}, kohya's layout has one alpha for all of "
                    "them; save it with layout='diffusers'"
                )
            down, up = stack_pairs(pairs, matrix.num_rows)
            alpha = pairs[0].scale * down.shape[0]
            stacked[module] = [(p.first_row, len(p.rows), p.rank, p.alpha) for p in pairs]
        down, up = _as_stored(down, up, matrix)
        tensors[f"{module}.lora_down.weight"] = down
        tensors[f"{module}.lora_up.weight"] = up
        tensors[f"{module}.alpha"] = _alpha_tensor(alpha)
    metadata = {"format": "pt"}
    if stacked:
        metadata[PAIRS_KEY] = json.dumps(stacked)
    return tensors, metadata


def _matrix(lora: Lora, part: str, name: str) -> Matrix | None:
    """None for a text encoder, whose names and rows all layouts share."""
    return mmdit_matrices(lora.config)[name] if part == "mmdit" else None


def _as_stored(down: Tensor, up: Tensor, matrix: Matrix | None) -> tuple[Tensor, Tensor]:
    """A convolution's pair is two convolutions, the second of single pixels."""
    if matrix is None or len(matrix.shape) == 2:
        return down, up
    kernel = matrix.shape[2:]
    return down.reshape(-1, *matrix.shape[1:]), up.reshape(*up.shape, *(1 for _ in kernel))


def _alpha_tensor(alpha: float) -> Tensor:
    single = torch.tensor(alpha, dtype=torch.float32)
    return single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)
