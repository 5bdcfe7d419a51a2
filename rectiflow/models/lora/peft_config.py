"""The alpha that PEFT keeps beside the tensors: read from a file, and written as diffusers does.

diffusers puts PEFT's `LoraConfig` into the safetensors metadata, its keys behind the part's name;
PEFT itself into adapter_config.json beside adapter_model.safetensors.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import read_json
from rectiflow.models.published.header import SafetensorsFile

METADATA_KEY = "lora_adapter_metadata"
_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model"


@dataclass(frozen=True, kw_only=True)
class PeftAlpha:
    """PEFT's rule for alpha: one for all modules but those that a pattern fits."""

    lora_alpha: float
    alpha_pattern: Mapping[str, float]
    use_rslora: bool

    def of(self, module: str, rank: int) -> float:
        """The alpha of a module by its name without the part's, as W += alpha/rank · up · down."""
        fitting = (
            alpha
            for pattern, alpha in self.alpha_pattern.items()
            if re.match(rf"(.*\.)?({pattern})$", module)
        )
        alpha = next(fitting, self.lora_alpha)
        # Rank-stabilised LoRA divides by the root of the rank. Source: arXiv 2312.03732.
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def config_beside(path: Path) -> Path | None:
    """PEFT's config file beside its file of tensors, if this is one and it is there."""
    beside = path.with_name(_PEFT_CONFIG)
    return beside if path.name == _PEFT_FILE and beside.exists() else None


def read_peft_alphas(file: SafetensorsFile) -> dict[str, PeftAlpha]:
    """For each prefix of modules ("transformer", …; "" for none) what the file says of alpha.

    Raises:
        CheckpointError: it says so in another form than PEFT's.
    """
    source, settings = METADATA_KEY, {}
    try:
        if METADATA_KEY in file.metadata:
            settings = _by_prefix(json.loads(file.metadata[METADATA_KEY]))
        elif beside := config_beside(file.path):
            source = _PEFT_CONFIG
            settings = {_PEFT_PREFIX: read_json(beside)}
        return {prefix: _alpha(own) for prefix, own in settings.items() if "lora_alpha" in own}
    except (ValueError, TypeError, AttributeError, re.error, UserError) as error:
        raise CheckpointError(
            f"{file.path}: its {source} is no LoraConfig of PEFT ({error}); without it the LoRA's "
            "strength is unknown, so fetch the file again"
        ) from error


def _by_prefix(data: Any) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {}
    for name, value in data.items():
        prefix, _, key = name.rpartition(".")
        settings.setdefault(prefix, {})[key] = value
    return settings


def _alpha(settings: Mapping[str, Any]) -> PeftAlpha:
    patterns = {key: float(value) for key, value in (settings.get("alpha_pattern") or {}).items()}
    for pattern in patterns:
        re.compile(pattern)
    alpha = float(settings["lora_alpha"])
    if not all(math.isfinite(value) for value in (alpha, *patterns.values())):
        raise ValueError("an alpha is not a finite number")
    return PeftAlpha(
        lora_alpha=alpha,
        alpha_pattern=patterns,
        use_rslora=bool(settings.get("use_rslora", False)),
    )


def peft_metadata(modules: Mapping[str, Mapping[str, tuple[int, float]]]) -> dict[str, str]:
    """The metadata for modules by prefix and name, each with rank and alpha."""
    data: dict[str, Any] = {}
    for prefix, own in modules.items():
        rank = Counter(rank for rank, _ in own.values()).most_common(1)[0][0]
        alpha = Counter(alpha for _, alpha in own.values()).most_common(1)[0][0]
        config = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {f"^{name}": r for name, (r, _) in own.items() if r != rank},
            "alpha_pattern": {f"^{name}": a for name, (_, a) in own.items() if a != alpha},
            "target_modules": sorted(own),
            "lora_bias": False,
            "use_dora": False,
            "use_rslora": False,
        }
        data |= {f"{prefix}.{key}": value for key, value in config.items()}
    return {"format": "pt", METADATA_KEY: json.dumps(data, indent=2, sort_keys=True)}
