"""A network that has other modules in place of some of its own, beside the one it was made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn


def with_modules(module: nn.Module, others: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A module that has `others[m]` wherever `module` has m, and shares all the rest."""
    if module in others:
        return others[module]
    children = {name: with_modules(child, others) for name, child in module.named_children()}
    if all(child is module.get_submodule(name) for name, child in children.items()):
        return module
    other = copy.copy(module)
    other.__dict__["_modules"] = children
    # Compiled, it would still be the module that it was copied from.
    other.__dict__["_compiled_call_impl"] = None
    return other


def is_compiled(module: nn.Module) -> bool:
    """Whether it, or a module within, runs as a compiled graph."""
    return any(part.__dict__.get("_compiled_call_impl") is not None for part in module.modules())
