"""Frozen dataclasses as JSON: written by :func:`plain`, and read by :func:`read`, which checks every field by its type.

A field's type says what it may hold; :class:`Must` narrows it further. Of a union of dataclasses the first is read, unless what
JSON has is another's by its own ``holds``. The agent carries this module, and only writes: reading
needs Python 3.10, whose annotations it looks at.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgekit.core.errors import EdgekitError
from edgekit.core.quantities import is_number, is_whole
from edgekit.core.values import Size

Value = TypeVar("Value")


@dataclass(frozen=True)
class Must:
    """What a value of an annotated type must be besides.

    Attributes:
        good: whether a value is.
        what: the good ones in words, after "which is not".
    """

    good: Callable[[Any], bool]
    what: str


@dataclass(frozen=True)
class Entries:
    """How many entries a list may have."""

    least: int = 0
    most: int = 1 << 20


def absent(default: Any) -> Any:
    """A field that JSON leaves out where it has this value."""
    return field(default=default, metadata={"absent": True})


def inline() -> Any:
    """A field that is an object itself, whose fields stand beside the others in JSON."""
    return field(metadata={"inline": True})


def plain(value: Any) -> Any:
    """JSON's form of a value: objects, lists, texts, numbers and null."""
    if isinstance(value, Size):
        return [value.height, value.width]
    if is_dataclass(value):
        found: dict[str, Any] = {}
        for one in fields(value):
            item = getattr(value, one.name)
            if one.metadata.get("inline"):
                found.update(plain(item))
            elif not (one.metadata.get("absent") and item == one.default):
                found[one.name] = plain(item)
        return found
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # A measurement has thousands of numbers, which are plain already.
        simple = all(type(item) in (int, float, str) for item in value)
        return list(value) if simple else [plain(item) for item in value]
    return value


def read(kind: type[Value], document: Any, place: str) -> Value:
    """The value of a dataclass that JSON holds. Keys of no field are nobody's business.

    Args:
        place: what messages call the document, such as ``latency``.

    Raises:
        EdgekitError: a field is missing or holds what its type does not; the sentence names it.
    """
    found: Value = _read(kind, document, place)
    return found


def _read(kind: Any, value: Any, place: str) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        return _annotated(kind, value, place)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        first, *others = (part for part in get_args(kind) if part is not type(None))
        return _read(next((part for part in others if part.holds(value)), first), value, place)
    if origin is Literal:
        _demand(isinstance(value, str) and value in get_args(kind), value, place, f"one of {', '.join(get_args(kind))}")
        return value
    if origin is tuple:
        return _tuple(get_args(kind)[0], value, place, Entries())
    if origin is not None and issubclass(origin, Mapping):
        _demand(isinstance(value, Mapping), value, place, "an object")
        inner = get_args(kind)[1]
        return {str(key): _read(inner, item, f"{place}.{key!s:.40}") for key, item in value.items()}
    if kind is Size:
        sides = (
            isinstance(value, (list, tuple)) and len(value) == 2 and all(is_whole(side, 1, 1 << 20) for side in value)
        )
        _demand(sides, value, place, "a height and a width")
        return Size(*value)
    if is_dataclass(kind):
        return _object(kind, value, place)
    if kind in _SIMPLE:
        simple = _SIMPLE[kind]
        _demand(simple.good(value), value, place, simple.what)
    return value


_SIMPLE: Mapping[Any, Must] = {
    str: Must(lambda value: isinstance(value, str), "a text"),
    bool: Must(lambda value: isinstance(value, bool), "true or false"),
    int: Must(lambda value: is_whole(value, -(1 << 62), 1 << 62), "a whole number"),
    float: Must(is_number, "a number"),
}


def _annotated(kind: Any, value: Any, place: str) -> Any:
    base, *limits = get_args(kind)
    for limit in limits:
        if isinstance(limit, Must):
            _demand(limit.good(value), value, place, limit.what)
        elif isinstance(limit, Entries):
            return _tuple(get_args(base)[0], value, place, limit)
    # What is narrowed is checked by that alone, unless there is something inside.
    return value if base in _SIMPLE or get_origin(base) is Literal else _read(base, value, place)


def _tuple(inner: Any, value: Any, place: str, limit: Entries) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or len(value) < limit.least:
        raise EdgekitError(
            f"{place} is {_short(value)}, which is not a list" + (" with entries" if limit.least else "")
        )
    if len(value) > limit.most:
        raise EdgekitError(f"{place} has {len(value)} entries, which are more than {limit.most}")
    good = _of_a_number(inner)
    if good is not None and all(map(good, value)):  # thousands of samples
        return tuple(value)
    return tuple(_read(inner, item, f"{place}[{index}]") for index, item in enumerate(value))


def _of_a_number(kind: Any) -> Callable[[Any], bool] | None:
    """What a simple type asks for, None for others."""
    if kind in _SIMPLE:
        return _SIMPLE[kind].good
    if get_origin(kind) is Annotated:
        base, *limits = get_args(kind)
        if base in _SIMPLE and len(limits) == 1 and isinstance(limits[0], Must):
            return limits[0].good
    return None


@cache
def _fields(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((one, hints[one.name]) for one in fields(kind))


def _object(kind: Any, value: Any, place: str) -> Any:
    _demand(isinstance(value, Mapping), value, place, "an object")
    found: dict[str, Any] = {}
    for one, hint in _fields(kind):
        if one.metadata.get("inline"):
            found[one.name] = _read(hint, value, place)
            continue
        default = one.default if one.default is not MISSING else None
        optional = one.default is not MISSING or one.default_factory is not MISSING
        if value.get(one.name) is None and (optional or type(None) in get_args(hint)):
            if not optional:
                found[one.name] = default
            continue
        if one.name not in value:
            raise EdgekitError(f"{place} has no {one.name}")
        found[one.name] = _read(hint, value[one.name], f"{place}.{one.name}")
    made = kind(**found)
    check = getattr(made, "check", None)
    if callable(check):
        check(place)
    return made


def _demand(good: object, value: Any, place: str, what: str) -> None:
    if not good:
        raise EdgekitError(f"{place} is {_short(value)}, which is not {what}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
