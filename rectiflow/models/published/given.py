"""What a config.json beside tensors says, taken for what it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast


def whole_number(given: Mapping[str, Any], name: str, default: int, *, least: int = 1) -> int:
    """A size, or what stands for it where nothing is said.

    Raises:
        ValueError: another value.
    """
    value = given.get(name, default)
    if type(value) is not int or value < least:
        raise ValueError(f"its config has {value!r:.40} as {name}, no whole number from {least} on")
    return value


def finite_number(given: Mapping[str, Any], name: str, default: float) -> float:
    """A number, or what stands for it where nothing is said.

    Raises:
        ValueError: another value.
    """
    value = given.get(name, default)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"its config has {value!r:.40} as {name}, no number")
    return float(value)


def check_sizes(config: Any, num_tensors: int) -> None:
    """Pass if a configuration's sizes are some, and it has no more blocks than there are tensors.

    Without the latter a number in a file could ask for any amount of time.

    Raises:
        ValueError: they are not.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        for number in cast(tuple[Any, ...], value) if isinstance(value, tuple) else (value,):
            if type(number) is int and number < (0 if field.name == "end_token" else 1):
                raise ValueError(f"{field.name} is {value}")
        repeats = len(value) if isinstance(value, tuple) else value
        if field.name in _REPEATS and not 1 <= repeats <= num_tensors:
            raise ValueError(f"{field.name} is {value!s:.40} with {num_tensors} tensors")


#: Fields that say how often something with tensors of its own is there.
_REPEATS = ("depth", "num_layers", "num_blocks", "num_dual_blocks", "channel_multipliers")
