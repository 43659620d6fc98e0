"""Single values between Python and JSON: numbers, texts, instants, enums.

Each hook takes one JSON type and refuses all others: no string becomes a number, no number
a boolean.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import enum
import re
import reprlib

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path, PurePath
from typing import Any, Literal, TypeGuard, get_args, get_origin
from uuid import UUID

import cattrs

from nursery_queue._core._json_text import to_text


Load = Callable[[Any, Any], Any]
Dump = Callable[[Any], Any]

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 100


class MisfitError(ValueError):
    """A value does not fit its annotation."""

    __module__ = "nursery_queue"  # what users read in tracebacks


def misfit(expected: str, value: Any) -> MisfitError:
    """Return the error for *value* where something else was *expected*."""
    return MisfitError(f"expected {expected}, got {shortened(value)}")


def named(hint: Any) -> str:
    """Return *hint* as its author would write it."""
    if hint is None or hint is type(None):
        return "None"
    return hint.__qualname__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def shortened(value: Any) -> str:
    """Return *value* as Python writes it, cut to 100 characters."""
    text = _short.repr(value)
    return text if len(text) <= 100 else text[:99] + "…"


def exactly(cls: type[Any]) -> Load:
    def hook(value: Any, hint: Any) -> Any:
        if type(value) is not cls:
            raise misfit(cls.__name__ if hint is cls else members(hint), value)
        if hint is cls:
            return value
        try:
            return hint(value)  # a class of the user's own, such as a StrEnum
        except ValueError:
            raise misfit(members(hint), value) from None

    return hook


def members(hint: Any) -> str:
    """Return the values that an enum, a Literal or some other class takes."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if isinstance(hint, enum.EnumType):
        members: list[Any] = list(hint)
        return f"one of {', '.join(repr(m.value) for m in members)} ({named(hint)})"
    return named(hint)


def is_enum(hint: object) -> TypeGuard[type[enum.Enum]]:
    return isinstance(hint, enum.EnumType)


def load_enum(hint: type[enum.Enum], converter: cattrs.Converter) -> Load:
    if issubclass(hint, enum.Flag):  # its members are combined, and any number may be one
        return exactly(int)
    return _one_of(list(hint), hint, converter)


def load_literal(hint: Any, converter: cattrs.Converter) -> Load:
    return _one_of(get_args(hint), hint, converter)


def dump_member(member: Any, converter: cattrs.Converter) -> Any:
    """Return a member of an enum, or any other value, as JSON has it."""
    return converter.unstructure(member.value if isinstance(member, enum.Enum) else member)


def _one_of(values: Iterable[Any], hint: Any, converter: cattrs.Converter) -> Load:
    choices = [(dump_member(value, converter), value) for value in values]
    for plain, choice in choices:
        to_text(plain, repr(choice))  # raises for what JSON has not

    def hook(value: Any, _: Any) -> Any:
        for plain, choice in choices:
            # Equal is not enough: 1 == True.
            if type(plain) is type(value) and plain == value:
                return choice
        raise misfit(members(hint), value)

    return hook


def _float(value: Any, _: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise misfit("float", value)
    return float(value)


def _none(value: Any, _: Any) -> None:
    if value is not None:
        raise misfit("None", value)


def _timedelta(value: Any, _: Any) -> dt.timedelta:
    if type(value) is str:
        return dt.timedelta(microseconds=_exact_seconds(value, _))
    if type(value) is not float and type(value) is not int:
        raise misfit("a number of seconds", value)
    return dt.timedelta(seconds=value)


def _seconds(value: dt.timedelta) -> float | str:
    """Return *value* in seconds: as a text if it is so long that a float would round it."""
    seconds = value.total_seconds()
    with contextlib.suppress(OverflowError):
        if dt.timedelta(seconds=seconds) == value:
            return seconds
    return str(Decimal(value // _MICROSECOND).scaleb(-6))


def _microseconds(text: str) -> int:
    if not re.fullmatch(r"-?\d+\.\d{6}", text):  # as `_seconds` writes it, and nothing else
        raise ValueError
    return int(Decimal(text).scaleb(6))


_MICROSECOND = dt.timedelta(microseconds=1)


def _path(value: Any, hint: Any) -> Any:
    if type(value) is not str:
        raise misfit("a path", value)
    return hint(value)


def _parsed(parse: Callable[[str], Any], expected: str) -> Load:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not str:
            raise misfit(expected, value)
        try:
            return parse(value)
        except (ValueError, ArithmeticError):
            raise misfit(expected, value) from None

    return hook


def _decimal(value: Any, hint: Any) -> Any:
    if type(value) is int or type(value) is float:
        value = repr(value)  # 0.1 is meant, not its nearest binary fraction
    return _decimal_text(value, hint)


_decimal_text = _parsed(Decimal, "a decimal number")
_exact_seconds = _parsed(_microseconds, "a number of seconds")


def load_literal_string(value: Any, _: Any) -> Any:
    return exactly(str)(value, str)  # only a type checker can tell a literal


_IP: Mapping[type[Any], str] = {
    IPv4Address: "an IPv4 address",
    IPv6Address: "an IPv6 address",
    IPv4Interface: "an IPv4 address with its network",
    IPv6Interface: "an IPv6 address with its network",
    IPv4Network: "an IPv4 network",
    IPv6Network: "an IPv6 network",
}


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


# Classes of the user's own that these hooks build.
_BUILT = frozenset({str, int, PurePath, Path})


def refuse_subclass(hint: Any, load: Load) -> None:
    """Raise `TypeError` if *load* is one of ours and would make something else than a *hint*."""
    for base in getattr(hint, "__mro__", ())[1:]:
        if LOADS.get(base) is load and base not in _BUILT and LOADS.get(hint) is not load:
            msg = f"annotate it with {named(base)}, and make a {named(hint)} of it in the handler"
            raise TypeError(msg)


LOADS: Mapping[type[Any], Load] = {
    str: exactly(str),
    int: exactly(int),
    bool: exactly(bool),
    float: _float,
    type(None): _none,
    bytes: _parsed(_from_base64, "bytes in base64"),
    dt.date: _parsed(dt.date.fromisoformat, "an ISO 8601 date"),
    dt.datetime: _parsed(dt.datetime.fromisoformat, "an ISO 8601 datetime"),
    dt.time: _parsed(dt.time.fromisoformat, "an ISO 8601 time"),
    dt.timedelta: _timedelta,
    Decimal: _decimal,
    UUID: _parsed(UUID, "a UUID"),
    PurePath: _path,
    Path: _path,
    **{cls: _parsed(cls, expected) for cls, expected in _IP.items()},
}
DUMPS: Mapping[type[Any], Dump] = {
    bytes: _base64,
    dt.date: dt.date.isoformat,
    dt.datetime: dt.datetime.isoformat,
    dt.time: dt.time.isoformat,
    dt.timedelta: _seconds,
    Decimal: str,
    UUID: str,
    PurePath: str,
    Path: str,
    **dict.fromkeys(_IP, str),
}
