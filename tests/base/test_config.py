"""Configs come back equal, and every kind of wrong file is refused by name."""

import enum
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectiflow.base.config import LATER, from_json, load_config, save_config, to_json
from rectiflow.base.errors import ConfigError, UserError


class Mode(enum.Enum):
    FAST = 1
    EXACT = 2


@dataclass(frozen=True, kw_only=True)
class AdamW:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Muon:
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


class Path2D(ABC):
    """An abstract class stands for the dataclasses below it."""

    @abstractmethod
    def length(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Line(Path2D):
    slope: float = 1.0

    def length(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Arc(Path2D):
    radius: float = 2.0

    def length(self) -> float:
        return 2.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    kind_of: ClassVar[str] = "not a field"
    optimizer: AdamW | Muon = field(default_factory=AdamW)
    path: Path2D = field(default_factory=Line)
    fallback: Muon | None = None
    plain: AdamW = field(default_factory=AdamW)
    mode: Mode = Mode.FAST
    precision: Literal["auto", "bf16"] = "auto"
    steps: int = 10
    rate: float = 1.0
    is_on: bool = False
    name: str | None = None
    out: Path = Path("a/b")
    prompts: tuple[str, ...] = ()
    mix: dict[str, float] = field(default_factory=dict)
    parts: list[AdamW | Muon] = field(default_factory=list)
    notes: Any = None


rates = st.floats(1e-9, 1e9)
adamw = st.builds(AdamW, learning_rate=rates, betas=st.tuples(rates, rates))
muon = st.builds(Muon, learning_rate=rates)
recipes = st.builds(
    Recipe,
    optimizer=adamw | muon,
    path=st.builds(Line, slope=rates) | st.builds(Arc, radius=rates),
    fallback=st.none() | muon,
    plain=adamw,
    mode=st.sampled_from(Mode),
    precision=st.sampled_from(["auto", "bf16"]),
    steps=st.integers(),
    rate=rates,
    is_on=st.booleans(),
    name=st.none() | st.text(),
    out=st.sampled_from([Path("x"), Path("/y/z.json")]),
    prompts=st.lists(st.text()).map(tuple),
    mix=st.dictionaries(st.text(), rates),
    parts=st.lists(adamw | muon),
    notes=st.none() | st.integers() | st.dictionaries(st.text(), st.lists(st.text())),
)


@given(recipes)
def test_round_trip_through_text(recipe: Recipe) -> None:
    text = json.dumps(to_json(recipe), allow_nan=False)
    assert from_json(Recipe, json.loads(text)) == recipe


def test_unions_and_abstract_classes_carry_their_kind() -> None:
    data = to_json(Recipe(optimizer=Muon(), path=Arc(), fallback=Muon()))
    assert data["optimizer"] == {"kind": "Muon", "learning_rate": 0.02}
    assert data["path"] == {"kind": "Arc", "radius": 2.0}
    assert data["fallback"] == {"kind": "Muon", "learning_rate": 0.02}
    assert data["plain"] == {"learning_rate": 1e-3, "betas": [0.9, 0.99]}
    assert "kind_of" not in data


def test_whole_numbers_stand_for_floats_and_become_them() -> None:
    data = to_json(Recipe()) | {"rate": 3}
    rate = from_json(Recipe, data).rate
    assert rate == 3.0
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 1}, 'unknown key "step"; allowed keys: optimizer, path, fallback'),
        ({"steps": 1.5}, "steps: expected int, got float 1.5"),
        ({"steps": True}, "steps: expected int, got bool True"),
        ({"rate": "fast"}, "rate: expected float, got str 'fast'"),
        ({"rate": math.nan}, "rate: expected a finite number, got float nan"),
        ({"rate": json.loads("1e999")}, "rate: expected a finite number, got float inf"),
        ({"rate": 10**400}, "rate: expected a finite number, got int 10000"),
        ({"notes": [{"a": -math.inf}]}, r"notes\[0\].a: expected a finite number, got float -inf"),
        ({"is_on": 1}, "is_on: expected bool, got int 1"),
        ({"name": 3}, "name: expected str or null, got int 3"),
        ({"out": None}, "out: expected Path, got NoneType None"),
        ({"mode": "SLOW"}, "mode: expected one of FAST, EXACT, got str 'SLOW'"),
        ({"precision": "fp8"}, "precision: expected one of 'auto', 'bf16', got str 'fp8'"),
        ({"prompts": "abc"}, "prompts: expected tuple"),
        ({"prompts": ["a", 1]}, r"prompts\[1\]: expected str, got int 1"),
        ({"mix": {"terse": "half"}}, "mix.terse: expected float, got str 'half'"),
        ({"mix": []}, "mix: expected dict"),
        ({"plain": [1]}, "plain: expected an object with the keys of AdamW, got list"),
        ({"plain": {"learning_rate": 1.0}}, 'missing key "plain.betas"; needed keys: learning_'),
        ({"plain": {"learning_rate": 1.0, "betas": [1.0]}}, "plain.betas: expected 2 items, got 1"),
        ({"optimizer": {"learning_rate": 1.0}}, 'optimizer: "kind" is missing; .* AdamW, Muon'),
        ({"optimizer": {"kind": "SGD"}}, "optimizer: unknown \"kind\" 'SGD'; .* AdamW, Muon"),
        ({"optimizer": 1}, "optimizer: expected AdamW or Muon, got int 1"),
        ({"path": {"kind": "Path2D"}}, "path: unknown \"kind\" 'Path2D'; it is one of: Arc, Line"),
        (
            {"optimizer": {"kind": "Muon", "learning_rate": -1.0}},
            "optimizer: learning_rate must be positive, got -1.0",
        ),
        ({"parts": [{"kind": "Muon"}]}, r'missing key "parts\[0\].learning_rate"'),
        ({"name": ["x" * 100]}, r"got list \['x{40,}\.\.\.$"),
    ],
)
def test_wrong_data_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(Recipe, to_json(Recipe()) | change)


@pytest.mark.parametrize("name", ["steps", "optimizer", "name"])
def test_missing_keys_are_named_even_where_a_default_exists(name: str) -> None:
    data = to_json(Recipe())
    del data[name]
    with pytest.raises(ConfigError, match=f'missing key "{name}"'):
        from_json(Recipe, data)


@pytest.mark.parametrize("key", ["notes", "name"])
def test_what_nests_too_deeply_is_refused(key: str) -> None:
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="it nests too deeply to be a Recipe"):
        from_json(Recipe, to_json(Recipe()) | {key: deep})


def test_keys_without_any_allowed_name() -> None:
    @dataclass(frozen=True)
    class Empty:
        pass

    with pytest.raises(ConfigError, match='unknown key "a"; allowed keys: none'):
        from_json(Empty, {"a": 1})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(rate=math.nan), "rate: expected a finite number, got float nan"),
        (Recipe(rate=10**400), "rate: expected a finite number, got int 1000"),
        (Recipe(steps="ten"), "steps: expected int, got str 'ten'"),  # pyright: ignore
        (Recipe(mix={1: 1.0}), "mix: expected a dict with string keys, got int 1"),  # pyright: ignore
        (Recipe(notes=object()), "notes: expected a value that JSON can hold, got object"),
        (Recipe(optimizer=3), "optimizer: expected AdamW or Muon, got int 3"),  # pyright: ignore
        ("text", "only dataclass instances become configs, got str 'text'"),
        (Recipe, "only dataclass instances become configs, got type"),
    ],
)
def test_what_cannot_be_written_is_named(recipe: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_json(recipe)


def test_files_round_trip_and_name_themselves(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    recipe = Recipe(name="ü", optimizer=Muon())
    save_config(path, recipe)
    assert load_config(path, Recipe) == recipe
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r'recipe\.json: missing key "optimizer"'):
        load_config(path, Recipe)
    with pytest.raises(UserError, match="cannot read .*absent.json: it does not exist"):
        load_config(tmp_path / "absent.json", Recipe)


@dataclass(frozen=True, kw_only=True)
class Grown:
    old: int
    new: int = field(default=3, metadata=LATER)


def test_a_later_field_is_left_out_at_its_default_and_read_without() -> None:
    assert to_json(Grown(old=1)) == {"old": 1}
    assert to_json(Grown(old=1, new=4)) == {"old": 1, "new": 4}
    for grown in (Grown(old=1), Grown(old=1, new=4)):
        assert from_json(Grown, to_json(grown)) == grown
    assert to_json(Grown(old=1), whole=True) == {"old": 1, "new": 3}
    with pytest.raises(ConfigError, match='missing key "old"'):
        from_json(Grown, {"new": 4})
