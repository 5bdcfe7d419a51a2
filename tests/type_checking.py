"""The checker that the tests put on every annotated function of the package."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

from beartype import BeartypeConf, beartype

Checked = TypeVar("Checked", bound=Callable[..., Any])

_beartype: Callable[[Any], Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Checked) -> Checked:
    """Wraps a function in checks of its arguments and result.

    beartype knows `Self` only where it decorates the whole class, and the hook decorates methods
    one by one: such a method goes unchecked.
    """
    hints = getattr(function, "__annotations__", {}).values()
    if any(hint is Self or hint == "Self" for hint in hints):
        return function
    return _beartype(function)
