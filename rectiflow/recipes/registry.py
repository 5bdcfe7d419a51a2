"""Names of the training recipes, as `rectiflow train RECIPE` takes them."""

import re
from collections.abc import Callable

from rectiflow.base.errors import ConfigError
from rectiflow.recipes.small import demo, mmdit, tiny
from rectiflow.training.recipe import TrainRecipe

RECIPES: dict[str, Callable[[], TrainRecipe]] = {"demo": demo, "tiny": tiny}
_MMDIT = re.compile(r"mmdit-d([1-9]\d{0,2})")


def recipe(name: str) -> TrainRecipe:
    """The recipe of that name; `mmdit-dN` is an MM-DiT of depth N.

    Raises:
        ConfigError: there is none; the text lists the names.
    """
    if name in RECIPES:
        return RECIPES[name]()
    sized = _MMDIT.fullmatch(name)
    if sized:
        return mmdit(int(sized[1]))
    raise ConfigError(f"unknown recipe {name!r}; choose one of {', '.join(names())}")


def names() -> list[str]:
    """All recipe names, with `mmdit-dN` for the sized ones."""
    return [*RECIPES, "mmdit-dN (N = depth, such as mmdit-d4)"]
