"""The tensors of a LoRA file by module: what each key means, and why some files are refused.

Pairs are called lora_A and lora_B by PEFT, with an adapter's name behind or none, lora_down and
lora_up by kohya's scripts, lora.down and lora.up by older diffusers; an alpha stands beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rectiflow.base.errors import CheckpointError
from rectiflow.models.lora.homes import Home, Homes
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published.configs import RELEASED
from rectiflow.models.published.stored import StoredTensor
from rectiflow.models.published.text_configs import RELEASED_TEXT

_KEY = re.compile(
    r"(?P<module>.+?)\."
    r"(?:(?P<down>lora_A(\.(?P<down_adapter>[^.]+))?\.weight|lora_down\.weight"
    r"|lora(_linear_layer)?\.down\.weight)"
    r"|(?P<up>lora_B(\.(?P<up_adapter>[^.]+))?\.weight|lora_up\.weight"
    r"|lora(_linear_layer)?\.up\.weight)"
    r"|(?P<alpha>alpha))"
)
#: Other ways of changing a model, by how a key ends; more than a pair of matrices.
_OTHER_ADAPTERS = {
    r"hada_[wt]\d.*": "LoHa",
    r"lokr_(w|t)\d.*": "LoKr",
    r"dora_scale|lora_magnitude_vector.*": "DoRA",
    r"lora_mid\.weight": "LoCon with a core",
    r"(oft|boft)[_.].*": "OFT",
    r"(lora_B|lora_up)\.bias": "LoRA with biases",
    r"diff(_b)?": "whole differences",
}
#: Models that are often met, by pieces of modules' names.
_OTHER_FAMILIES = (
    (("single_transformer_blocks", "double_blocks", "single_blocks"), "FLUX"),
    (("down_blocks", "up_blocks", "input_blocks", "output_blocks"), "Stable Diffusion 1, 2 or XL"),
)
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """What a file holds of one module; `keys` are the tensors' names by "down", "up", "alpha"."""

    module: str
    keys: Mapping[str, str]
    down: StoredTensor
    up: StoredTensor
    alpha: StoredTensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that it changes, a convolution's as a matrix."""
        return self.up.shape[0], math.prod(self.down.shape[1:])


def stored_pairs(path: Path, tensors: Mapping[str, StoredTensor]) -> list[StoredPair]:
    """The pairs of a file.

    Raises:
        CheckpointError: there is none, or half of one, or one that does not multiply, or a tensor
            that is something else.
    """
    keys: dict[str, dict[str, str]] = {}
    adapters: set[str] = set()
    unknown: list[str] = []
    for key in tensors:
        found = _KEY.fullmatch(key)
        if found is None:
            unknown.append(key)
            continue
        adapters |= {found[name] for name in ("down_adapter", "up_adapter") if found[name]}
        role = next(role for role in ("down", "up", "alpha") if found[role])
        own = keys.setdefault(found["module"], {})
        if role in own and len(adapters) < 2:
            raise CheckpointError(
                f"{path} has both {own[role]} and {key}, two tensors for one place; remove one"
            )
        own[role] = key
    _refuse_unknown(path, unknown, is_any_known=bool(keys))
    if len(adapters) > 1:
        raise CheckpointError(
            f"{path} holds several LoRAs, {', '.join(sorted(adapters))}; give each a file of its "
            "own"
        )
    pairs: list[StoredPair] = []
    for module, own in keys.items():
        missing = [role for role in ("down", "up") if role not in own]
        if missing:
            raise CheckpointError(
                f"{path} has {next(iter(own.values()))} but not its {' and '.join(missing)} "
                "matrix; the file is incomplete, fetch it again"
            )
        down, up = tensors[own["down"]], tensors[own["up"]]
        if not _do_multiply(down.shape, up.shape):
            raise CheckpointError(
                f"{path}: {own['up']} {list(up.shape)} and {own['down']} {list(down.shape)} do not "
                "multiply; they should be [rows, rank] and [rank, columns], or a convolution's"
            )
        alpha = tensors[own["alpha"]] if "alpha" in own else None
        pairs.append(StoredPair(module=module, keys=own, down=down, up=up, alpha=alpha))
    return pairs


def _do_multiply(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    if len(down) != len(up) or len(down) not in (2, 4) or 0 in down or 0 in up:
        return False
    return down[0] == up[1] and math.prod(up[2:]) == 1


def _refuse_unknown(path: Path, unknown: list[str], *, is_any_known: bool) -> None:
    for ending, kind in _OTHER_ADAPTERS.items():
        found = [key for key in unknown if re.search(rf"(^|\.)({ending})$", key)]
        if found:
            raise CheckpointError(
                f"{path} is a {kind} file, as {found[0]} tells; rectiflow merges plain LoRA, pairs "
                "of two matrices: give a file of that kind"
            )
    if not is_any_known:
        raise CheckpointError(
            f"{path} holds no LoRA: none of its {len(unknown)} tensors is half of a pair "
            f"({_some(unknown)}); a whole model is loaded with load_mmdit"
        )
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} of its tensors are neither half of a pair nor an alpha "
            f"({', '.join(unknown)}); nothing of a file is left out, so give one with LoRA keys "
            "only"
        )


def find_homes(
    path: Path, pairs: Sequence[StoredPair], homes: Homes, config: MMDiTConfig
) -> list[Home]:
    """The place of each pair.

    Raises:
        CheckpointError: one has none, or one of another shape; the text says what the file is for,
            if that can be told.
    """
    found = [homes.find(pair.module) for pair in pairs]
    homeless = [pair.module for pair, home in zip(pairs, found) if home is None]
    if homeless:
        # All by name, unless it is a file for quite another model.
        names = _some(homeless) if len(homeless) == len(pairs) else ", ".join(homeless)
        raise CheckpointError(
            f"{path}: {len(homeless)} of its {len(pairs)} modules are not in {_title(config)}: "
            f"{names}; {_what_it_is_for(pairs)}"
        )
    housed = [home for home in found if home is not None]
    for pair, home in zip(pairs, housed):
        if pair.shape != home.shape:
            raise CheckpointError(
                f"{path}: {pair.module} changes a matrix of {list(pair.shape)}, in "
                f"{_title(config)} it is {list(home.shape)}; {_what_it_is_for(pairs)}"
            )
    return housed


def _title(config: MMDiTConfig) -> str:
    return f"this {config.title} of depth {config.depth} and width {config.hidden_dim}"


def _what_it_is_for(pairs: Sequence[StoredPair]) -> str:
    for pieces, family in _OTHER_FAMILIES:
        if any(piece in pair.module for pair in pairs for piece in pieces):
            return f"it is a LoRA for {family}, SD3 and SD3.5 are expected"
    fitting = [name for name, config in RELEASED.items() if _fits(pairs, config)]
    if fitting:
        return f"it is a LoRA for {', '.join(fitting)}; load that model"
    return "give a LoRA that was made for this model"


def _fits(pairs: Sequence[StoredPair], config: MMDiTConfig) -> bool:
    homes = Homes.of(config, RELEASED_TEXT)
    found = [homes.find(pair.module) for pair in pairs]
    return all(home is not None and home.shape == pair.shape for pair, home in zip(pairs, found))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")
