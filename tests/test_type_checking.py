"""The import hook is on: a wrong shape or type at the package's border fails in tests."""

from typing import Self

import pytest
import torch

from rectiflow.base.philox import uniform
from rectiflow.base.seeds import derive_seed


def test_shapes_are_checked() -> None:
    with pytest.raises(Exception, match="keys"):
        uniform(torch.zeros(2, 2, dtype=torch.int64), 1, stream=0)


def test_types_are_checked() -> None:
    with pytest.raises(Exception, match="seed"):
        derive_seed("0")  # pyright: ignore[reportArgumentType]


def test_whole_numbers_stand_for_floats() -> None:
    from rectiflow.generation.settings import SamplingSettings

    assert SamplingSettings(guidance_scale=3).guidance_scale == 3


def test_methods_that_return_self_import() -> None:
    from type_checking import check

    class Box:
        @check
        def opened(self) -> Self:
            return self

        @check
        def sized(self, number: int) -> int:
            return number

    box = Box().opened()
    assert box.sized(1) == 1
    with pytest.raises(Exception, match="number"):
        box.sized("1")  # pyright: ignore[reportArgumentType]


def test_shapes_are_compared_among_arguments_where_they_are_named() -> None:
    from rectiflow.models.layers.linear import multiply

    with pytest.raises(TypeError, match="weight"):
        multiply(torch.zeros(2, 3), torch.zeros(4, 5), None)


def test_a_hint_that_is_not_known_yet_is_not_checked_and_the_others_are() -> None:
    from type_checking import check

    @check
    def joined(first: "Later", second: int) -> Self:  # noqa: F821  # pyright: ignore
        return (first, second)  # pyright: ignore

    assert joined("any", 1) == ("any", 1)
    with pytest.raises(TypeError, match="second"):
        joined("any", "1")
