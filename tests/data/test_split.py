"""The split: pure, together all, no content on both sides, whatever the order of samples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.base.errors import ConfigError
from rectiflow.data.split import split_store


def names(count: int) -> list[str]:
    return [f"picture {i}" for i in range(count)]


CONTENTS = st.lists(st.integers(0, 30).map(str), min_size=2, max_size=80)


@given(CONTENTS, st.integers(0, 2**40), st.data())
@settings(max_examples=100, deadline=None)
def test_parts_are_disjoint_in_content_and_complete(
    contents: list[str], seed: int, draw: st.DataObject
) -> None:
    num = draw.draw(st.integers(0, len(contents) - 1))
    split = split_store(contents, num_validation=num, seed=seed)
    train, validation = split.train.tolist(), split.validation.tolist()
    assert sorted(train + validation) == list(range(len(contents)))
    assert train == sorted(train)
    assert validation == sorted(validation)
    assert len(validation) <= num
    assert not {contents[i] for i in train} & {contents[i] for i in validation}
    order = draw.draw(st.permutations(range(len(contents))))
    again = split_store([contents[i] for i in order], num_validation=num, seed=seed)
    assert sorted(order[i] for i in again.validation.tolist()) == validation


def test_distinct_contents_give_the_exact_number() -> None:
    contents = names(1000)
    one = split_store(contents, num_validation=100, seed=0)
    other = split_store(contents, num_validation=100, seed=1)
    assert len(one.validation) == len(other.validation) == 100
    assert one.validation.tolist() != other.validation.tolist()
    assert one.validation.float().mean() == pytest.approx(500, abs=100)


def test_a_store_that_grows_keeps_nearly_all_that_it_held_out() -> None:
    """Of 50 held-out contents, 10 % more contents push out some 5."""
    held_out: list[set[str]] = []
    for count in (1000, 1100):
        contents = names(count)
        split = split_store(contents, num_validation=50, seed=0)
        held_out.append({contents[i] for i in split.validation.tolist()})
    assert len(held_out[0] & held_out[1]) >= 38


def test_nothing_held_out() -> None:
    assert len(split_store(names(3), num_validation=0, seed=0).train) == 3


def test_impossible_numbers() -> None:
    with pytest.raises(ConfigError, match="num_validation is -1; it must be 0 or more"):
        split_store(names(3), num_validation=-1, seed=0)
    with pytest.raises(ConfigError, match="num_validation is 3, but the store has 3 samples and"):
        split_store(names(3), num_validation=3, seed=0)
