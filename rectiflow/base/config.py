"""Frozen dataclasses to JSON and back, strictly: recipes, model cards, store headers.

The dataclass is the schema. A field whose type is a union or an abstract class writes which
dataclass it holds as {"kind": "<ClassName>", ...}. Reading accepts exactly what writing produces:
an unknown key, a missing key or a wrong type is an error that names the dotted path. A field that
earlier files lack has `LATER` as its metadata.
"""

import dataclasses
import enum
import inspect
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from rectiflow.base.errors import ConfigError
from rectiflow.base.files import read_json, write_json

T = TypeVar("T")

_KIND = "kind"
#: Metadata of a dataclass field that came later than files: it is left out of JSON where it is its
#: default, so that earlier files are read, and what does not use it is written as it always was.
LATER = {"later": True}


def to_json(obj: Any, *, whole: bool = False) -> Any:
    """The JSON value of a dataclass instance, by its fields' declared types.

    `whole` keeps the `LATER` fields that are their defaults, to compare instances by.

    Raises:
        ConfigError: a value that its field's type does not allow, or that JSON cannot hold.
    """
    if not dataclasses.is_dataclass(obj) or isinstance(obj, type):
        raise ConfigError(f"only dataclass instances become configs, got {_describe(obj)}")
    return _encode(type(obj), obj, "", whole)


def from_json(cls: type[T], data: Any) -> T:
    """The instance of dataclass `cls` that `to_json` wrote as `data`.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, an unknown kind, or a value that the
            dataclass itself refuses; the text gives the dotted path and what is allowed.
    """
    try:
        return _decode(cls, data, "")
    except RecursionError as error:
        raise ConfigError(
            f"it nests too deeply to be a {cls.__name__}; remove what nests"
        ) from error


def save_config(path: Path | str, obj: Any) -> None:
    """Writes a dataclass instance to a JSON file, atomically.

    Raises:
        ConfigError: as `to_json`.
        UserError: the file cannot be written.
    """
    write_json(path, to_json(obj))


def load_config(path: Path | str, cls: type[T]) -> T:
    """Reads a dataclass instance from a JSON file.

    Raises:
        UserError: the file cannot be read.
        ConfigError: as `from_json`, with the file's name in front.
    """
    data = read_json(path)
    try:
        return from_json(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


# --- writing ---------------------------------------------------------------------------------


def _encode(hint: Any, value: Any, path: str, whole: bool) -> Any:
    options = _dataclass_options(hint)
    if options and type(value) in options:
        return {_KIND: type(value).__name__} | _encode_fields(value, path, whole)
    if _is_dataclass_type(hint) and type(value) is hint:
        return _encode_fields(value, path, whole)
    if hint is Any:
        return _encode_plain(value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            if not _is_dataclass_type(argument) and _accepts(argument, value):
                return _encode(argument, value, path, whole)
    elif origin is tuple and isinstance(value, tuple):
        items = cast(tuple[Any, ...], value)
        hints = _item_hints(arguments, len(items), path)
        return [_encode(h, v, f"{path}[{i}]", whole) for i, (h, v) in enumerate(zip(hints, items))]
    elif origin is list and isinstance(value, list):
        items = cast(list[Any], value)
        return [_encode(arguments[0], item, f"{path}[{i}]", whole) for i, item in enumerate(items)]
    elif origin is dict and isinstance(value, dict):
        entries = cast(dict[Any, Any], value)
        for key in entries:
            if not isinstance(key, str):
                raise _wrong(path, "a dict with string keys", key)
        return {
            k: _encode(arguments[1], item, _join(path, k), whole) for k, item in entries.items()
        }
    elif _accepts(hint, value):
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, Path):
            return value.as_posix()
        return _finite(value, path) if hint is float else _encode_plain(value, path)
    raise _wrong(path, _name(hint), value)


def _encode_fields(value: Any, path: str, whole: bool) -> dict[str, Any]:
    hints = typing.get_type_hints(type(value))
    return {
        field.name: _encode(
            hints[field.name], getattr(value, field.name), _join(path, field.name), whole
        )
        for field in dataclasses.fields(value)
        if field.init
        and (
            whole
            or not (field.metadata.get("later") and getattr(value, field.name) == field.default)
        )
    }


def _encode_plain(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(path, "a finite number", value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = cast(list[Any], value)
        return [_encode_plain(item, f"{path}[{i}]") for i, item in enumerate(items)]
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value)
        return {str(k): _encode_plain(item, _join(path, str(k))) for k, item in entries.items()}
    raise _wrong(path, "a value that JSON can hold", value)


# --- reading ---------------------------------------------------------------------------------


def _decode(hint: Any, data: Any, path: str) -> Any:
    if hint is Any:
        return _encode_plain(data, path)
    options = _dataclass_options(hint)
    if options and isinstance(data, dict):
        return _decode_tagged(options, cast(dict[str, Any], data), path)
    if _is_dataclass_type(hint):
        return _decode_fields(hint, data, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            if not _is_dataclass_type(argument) and _matches(argument, data):
                return _decode(argument, data, path)
    elif origin is tuple and isinstance(data, list):
        items = cast(list[Any], data)
        hints = _item_hints(arguments, len(items), path)
        return tuple(_decode(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(hints, items)))
    elif origin is list and isinstance(data, list):
        items = cast(list[Any], data)
        return [_decode(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(items)]
    elif origin is dict and isinstance(data, dict):
        entries = cast(dict[str, Any], data)
        return {k: _decode(arguments[1], item, _join(path, k)) for k, item in entries.items()}
    elif _matches(hint, data):
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return hint[data]
        if hint is float:
            return _finite(data, path)
        return Path(data) if hint is Path else data
    raise _wrong(path, _name(hint), data)


def _decode_tagged(options: tuple[type, ...], data: dict[str, Any], path: str) -> Any:
    allowed = ", ".join(sorted(option.__name__ for option in options))
    if _KIND not in data:
        raise ConfigError(f'{_at(path)}"{_KIND}" is missing; it is one of: {allowed}')
    for option in options:
        if option.__name__ == data[_KIND]:
            rest = {key: item for key, item in data.items() if key != _KIND}
            return _decode_fields(option, rest, path)
    raise ConfigError(f'{_at(path)}unknown "{_KIND}" {data[_KIND]!r}; it is one of: {allowed}')


def _decode_fields(cls: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(path, f"an object with the keys of {cls.__name__}", data)
    entries = cast(dict[str, Any], data)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    names = [field.name for field in fields]
    allowed = ", ".join(names) or "none"
    for key in entries:
        if key not in names:
            raise ConfigError(f'unknown key "{_join(path, key)}"; allowed keys: {allowed}')
    for field in fields:
        if field.name not in entries and not field.metadata.get("later"):
            raise ConfigError(f'missing key "{_join(path, field.name)}"; needed keys: {allowed}')
    hints = typing.get_type_hints(cls)
    values = {
        name: _decode(hints[name], entries[name], _join(path, name))
        for name in names
        if name in entries
    }
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_at(path)}{error}") from error


def _finite(number: float, path: str) -> float:
    """A whole number too becomes a float, unless it has more digits than floats hold."""
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise _wrong(path, "a finite number", number)
    return value


# --- types -----------------------------------------------------------------------------------


def _is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and not _is_open(hint)


def _is_open(hint: Any) -> bool:
    """Whether a class stands for its subclasses: abstract, with dataclasses below it."""
    return isinstance(hint, type) and inspect.isabstract(hint)


def _dataclass_options(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a union or an abstract class allows; empty for any other type."""
    if _is_open(hint):
        return _concrete_subclasses(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        found: list[type] = []
        for argument in typing.get_args(hint):
            found += [argument] if _is_dataclass_type(argument) else _dataclass_options(argument)
        return tuple(found)
    return ()


def _concrete_subclasses(cls: type) -> tuple[type, ...]:
    found: list[type] = []
    for subclass in cls.__subclasses__():
        if _is_dataclass_type(subclass):
            found.append(subclass)
        found += _concrete_subclasses(subclass)
    return tuple(dict.fromkeys(found))


def _item_hints(arguments: tuple[Any, ...], count: int, path: str) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is ...:
        return (arguments[0],) * count
    if len(arguments) != count:
        raise ConfigError(f"{_at(path)}expected {len(arguments)} items, got {count}")
    return arguments


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a Python value may stand in a field of a type that is not a dataclass."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum | Path):
        return isinstance(value, hint)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple)
    return _matches(hint, value)


def _matches(hint: Any, data: Any) -> bool:
    """Whether a JSON value may stand for a type that is not a dataclass, judged by its top."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return any(data == option and type(data) is type(option) for option in hint.__args__)
    if origin in (tuple, list):
        return isinstance(data, list)
    if origin is dict:
        return isinstance(data, dict)
    if hint is type(None):
        return data is None
    if hint is float:
        return isinstance(data, (int, float)) and not isinstance(data, bool)
    if hint is int:
        return isinstance(data, int) and not isinstance(data, bool)
    if hint in (bool, str):
        return isinstance(data, hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(data, str) and data in hint.__members__
    if hint is Path:
        return isinstance(data, str)
    return False


# --- wording ---------------------------------------------------------------------------------


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_name(argument) for argument in typing.get_args(hint))
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    return hint.__name__ if isinstance(hint, type) and not typing.get_origin(hint) else str(hint)


def _describe(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{type(value).__name__} {text}"


def _wrong(path: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{_at(path)}expected {expected}, got {_describe(value)}")
