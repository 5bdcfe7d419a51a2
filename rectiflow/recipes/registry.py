"""Names of the training recipes, as `rectiflow train RECIPE` takes them."""

import re
from collections.abc import Callable

from rectiflow.base.errors import ConfigError
from rectiflow.recipes.released_size import sd3
from rectiflow.recipes.small import BACKBONES, demo, small, tiny, tiny_mmdit
from rectiflow.training.recipe import TrainRecipe

RECIPES: dict[str, Callable[[], TrainRecipe]] = {
    "demo": demo,
    "tiny": tiny,
    "tiny-mmdit": tiny_mmdit,
}
_HIGHRES = "highres-"
_RELEASED_SIZE = "sd3"
_SIZED = re.compile(r"(\w+)-d([1-9]\d{0,2})")


def recipe(name: str) -> TrainRecipe:
    """The recipe of that name; `mmdit-dN` is an MM-DiT of depth N, and so for each backbone.

    `sd3-dN` is one for the released autoencoder and text encoders, trained as the paper does.
    `highres-MODEL` fine-tunes a shipped model, or the model of a folder, at twice its resolution.

    Raises:
        UserError: there is no such MODEL.
        ConfigError: there is none; the text lists the names.
    """
    if name in RECIPES:
        return RECIPES[name]()
    sized = _SIZED.fullmatch(name)
    if sized and sized[1] == _RELEASED_SIZE:
        return sd3(int(sized[2]))
    if sized and sized[1] in BACKBONES:
        return small(name, BACKBONES[sized[1]](int(sized[2])))
    if name.startswith(_HIGHRES):
        # Reads a model's card, which the others do without.
        from rectiflow.recipes.highres import highres

        return highres(name.removeprefix(_HIGHRES))
    raise ConfigError(f"unknown recipe {name!r}; choose one of {', '.join(names())}")


def names() -> list[str]:
    """All recipe names, with `mmdit-dN` and its like for the sized ones."""
    sized = [f"{backbone}-dN" for backbone in BACKBONES]
    return [
        *RECIPES,
        *sized[:-1],
        f"{sized[-1]} (N = depth, such as mmdit-d4)",
        f"{_RELEASED_SIZE}-dN (on released parts, such as sd3-d24)",
        f"{_HIGHRES}MODEL (MODEL = a shipped model or a run's folder, such as highres-tiny)",
    ]
