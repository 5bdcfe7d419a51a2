"""Reads a LoRA file of any of the usual tools into a `Lora`, completely or not at all."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rectiflow.base.errors import CheckpointError
from rectiflow.models.lora.homes import Home, Homes
from rectiflow.models.lora.keys import StoredPair, find_homes, stored_pairs
from rectiflow.models.lora.low_rank import Lora, LowRank, join_shared, stack_pairs
from rectiflow.models.lora.peft_config import PeftAlpha, read_peft_alphas
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published.header import SafetensorsFile, read_safetensors
from rectiflow.models.published.stored import HEADER_NAMES, StoredTensor
from rectiflow.models.published.text_configs import RELEASED_TEXT, TextSize

#: Where a file of ours in kohya's layout says which pairs lie in one stacked pair: for a module
#: its pairs' [first row, rows, rank, alpha].
PAIRS_KEY = "rectiflow.lora_pairs"


def read_lora(
    path: Path | str, config: MMDiTConfig, *, text: Mapping[str, TextSize] = RELEASED_TEXT
) -> Lora:
    """The LoRA in a file of diffusers, PEFT, kohya's scripts, OneTrainer, SimpleTuner or ComfyUI.

    Strength is alpha/rank. Alpha comes from the file's tensors, or from PEFT's config; where the
    file has neither it is the rank. kohya's split_qkv files count with the rank of each part.

    Args:
        path: a safetensors file; PEFT's adapter_model.safetensors keeps alpha in the
            adapter_config.json beside it.
        config: the MM-DiT that it is for.
        text: sizes of the text encoders; SD3's unless `text_sizes` gave others.

    Raises:
        UserError: the file is missing or unreadable.
        CheckpointError: it is cut, damaged, no safetensors file or no plain LoRA; or for another
            model, or a tensor of it has no place, a wrong shape, or values that are not finite.
    """
    file = read_safetensors(path)
    pairs = stored_pairs(file.path, file.tensors)
    homes = find_homes(file.path, pairs, Homes.of(config, text), config)
    alphas, stacked = read_peft_alphas(file), _stacked_pairs(file)
    updates: dict[str, dict[str, list[LowRank]]] = {}
    for pair, home in zip(pairs, homes):
        down, up = (
            _load(file.path, pair.keys[r], t) for r, t in (("down", pair.down), ("up", pair.up))
        )
        alpha = _alpha(file.path, pair, alphas)
        whole = LowRank(down=down, up=home.up_to_ours(up), alpha=alpha, first_row=home.first_row)
        found = updates.setdefault(home.part, {}).setdefault(home.name, [])
        found += _unstacked(file, pair.module, whole, home, stacked)
    return Lora(
        config=config,
        parts={
            part: {name: _in_order(file.path, name, found) for name, found in own.items()}
            for part, own in updates.items()
        },
    )


def _load(path: Path, key: str, stored: StoredTensor) -> Tensor:
    """The values as a matrix in float32."""
    if not stored.dtype.is_floating_point:
        raise CheckpointError(
            f"{path}: {key} is stored as {HEADER_NAMES[stored.dtype]}; give a LoRA in F32, F16 or "
            "BF16"
        )
    # A copy: the file may be changed or removed while the LoRA is in use.
    values = stored.load().to(torch.float32, copy=True)
    if not values.isfinite().all():
        raise CheckpointError(f"{path}: {key} holds NaN or infinity; fetch or train it again")
    return values.flatten(1)


def _alpha(path: Path, pair: StoredPair, alphas: Mapping[str, PeftAlpha]) -> float:
    rank, of_config = pair.down.shape[0], None
    for prefix, rule in alphas.items():
        start = f"{prefix}." if prefix else ""
        if pair.module.startswith(start):
            of_config = rule.of(pair.module.removeprefix(start), rank)
    if pair.alpha is None:
        return float(rank) if of_config is None else of_config
    key = pair.keys["alpha"]
    if pair.alpha.num_elements != 1:
        raise CheckpointError(
            f"{path}: {key} has the shape {list(pair.alpha.shape)}; an alpha is one number"
        )
    alpha = float(pair.alpha.load().item())
    if not math.isfinite(alpha):
        raise CheckpointError(f"{path}: {key} is {alpha}; an alpha is a finite number")
    # The tensor may be rounded to 16 bits.
    if of_config is not None and not math.isclose(of_config, alpha, rel_tol=0.01):
        raise CheckpointError(
            f"{path}: {key} is {alpha}, but the file's config says {of_config}; its strength is "
            "unknown, ask who made it"
        )
    return alpha


# --- several pairs stacked into one ---------------------------------------------------------------


def _stacked_pairs(file: SafetensorsFile) -> dict[str, Any]:
    """What a file of ours says of stacked pairs."""
    try:
        return dict(json.loads(file.metadata.get(PAIRS_KEY, "{}")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file.path}: its {PAIRS_KEY} cannot be read ({error}); save the LoRA again"
        ) from error


def _unstacked(
    file: SafetensorsFile, module: str, whole: LowRank, home: Home, stacked: Mapping[str, Any]
) -> list[LowRank]:
    """The pairs that a module's pair consists of."""
    if module in stacked:
        try:
            pieces = [(int(f), int(n), int(r), float(a)) for f, n, r, a in stacked[module]]
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{file.path}: its {PAIRS_KEY} cannot be read ({error}); save the LoRA again"
            ) from error
        pairs = _cut(whole, pieces)
        if pairs is None:
            raise CheckpointError(
                f"{file.path}: {module} is not stacked as its {PAIRS_KEY} says; save the LoRA again"
            )
        return pairs
    num_parts = len(home.matrix.entry.diffusers)
    if num_parts > 1 and home.layout == "sai" and _is_split_by_kohya(file):
        # One alpha for all, that belongs to the rank of a part. Source: kohya-ss/sd-scripts,
        # networks/lora_sd3.py. A file that was resized is no longer split, its alpha is its own.
        num_rows, rank = home.shape[0] // num_parts, whole.rank // num_parts
        pieces = [(i * num_rows, num_rows, rank, whole.alpha) for i in range(num_parts)]
        return _cut(whole, pieces) or [whole]
    return [whole]


def _is_split_by_kohya(file: SafetensorsFile) -> bool:
    try:
        arguments = json.loads(file.metadata.get("ss_network_args", "{}"))
        return str(arguments.get("split_qkv")) == "True"
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file.path}: its ss_network_args cannot be read ({error}), which say how queries, "
            "keys and values are scaled; fetch the file again"
        ) from error


def _cut(whole: LowRank, pieces: list[tuple[int, int, int, float]]) -> list[LowRank] | None:
    """A stacked pair as the pieces (first row, rows, rank, alpha); None where it is no such."""
    pairs: list[LowRank] = []
    start = 0
    for first, count, rank, alpha in pieces:
        up = whole.up[first : first + count, start : start + rank]
        down = whole.down[start : start + rank]
        if first < 0 or not math.isfinite(alpha) or min(count, rank) < 1:
            return None
        if up.shape != (count, rank) or down.shape[0] != rank:
            return None
        pairs.append(LowRank(down=down, up=up, alpha=alpha, first_row=first))
        start += rank
    if start != whole.rank:
        return None
    return pairs if torch.equal(stack_pairs(pairs, whole.up.shape[0])[1], whole.up) else None


def _in_order(path: Path, name: str, pairs: list[LowRank]) -> tuple[LowRank, ...]:
    joined = join_shared(pairs)
    for first, second in itertools.pairwise(joined):
        if second.first_row < first.rows.stop:
            raise CheckpointError(
                f"{path} changes {name} twice, under two names; remove one of them"
            )
    return joined
