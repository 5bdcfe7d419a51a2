"""The checks that the tests put on every annotated function of the package, and how sizes compare.

jaxtyping's hook puts a decorator there. Its own one binds each call's arguments and passes them to
two empty functions, which is more work than most functions do themselves; `check` leaves all but
the comparison of sizes to beartype.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import jaxtyping
from beartype import BeartypeConf, beartype

# A TypeError like jaxtyping's.
_CONF = BeartypeConf(is_pep484_tower=True, violation_type=TypeError)
_beartype: Callable[[Any], Any] = beartype(conf=_CONF)
_sizes: Any = jaxtyping.jaxtyped
#: `Float[Tensor, "b c"]` and its like.
_SHAPED = re.compile(r'\w+\[[\w.]+, ["\'][^"\']*["\']\]')


def install(package: str) -> None:
    """Check what is imported of `package` from now on."""
    jaxtyping.install_import_hook(package, f"{__name__}.{check.__name__}")
    # By this name the modules find the hook's decorator.
    jaxtyping.jaxtyped = lambda *, typechecker: check


def check(decorated: Any) -> Any:
    """Wraps a function in checks of its arguments and result; of a class, a dataclass's making.

    A hint that is not known yet where the function is made, as of its own class, or to type
    checkers alone, is not checked; nor is `Self`, which beartype knows in whole classes only.
    """
    if inspect.isclass(decorated):
        if dataclasses.is_dataclass(decorated) and "__init__" in vars(decorated):
            decorated.__init__ = check(decorated.__init__)
        return decorated
    declared = inspect.get_annotations(decorated)
    decorated.__annotations__ = {
        name: _resolved(hint, decorated.__globals__) for name, hint in declared.items()
    }
    try:
        checked = _beartype(decorated)
    finally:
        decorated.__annotations__ = declared
    if not any(_SHAPED.search(str(hint)) for hint in declared.values()):
        return checked

    @functools.wraps(decorated)
    def with_sizes_of_its_own(*args: Any, **kwargs: Any) -> Any:
        with _sizes("context"):
            return checked(*args, **kwargs)

    return with_sizes_of_its_own


def _resolved(hint: Any, names: Mapping[str, Any]) -> Any:
    try:
        while isinstance(hint, str):
            hint = eval(hint, dict(names))
    except (NameError, AttributeError, TypeError):
        return Any
    return Any if hint is Self else hint
