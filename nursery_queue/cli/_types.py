"""How values on the command line are read: one parameter type, and a function for each kind."""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
import sys

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from nursery_queue._core._checks import duration, instant, label, whole
from nursery_queue._core._rate import Rate
from nursery_queue._core._streams import stream_name


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic before click 8.4

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"([0-9]+)/([0-9.]+(?:e-[0-9]+)?[a-z]*)(?:\+([0-9]+))?")
_DURATION = re.compile(r"((?:\d+(?:\.\d*)?|\.\d+)(?:e-\d+)?)\s*([a-z]*)")
_INSTANTS = "2030-01-31T08:00+01:00 or ...Z"


class Checked(ParamType):
    """Values as *read* returns them; its `ValueError` or `TypeError` is the usage error.

    Args:
        name: How the value of an option is called in help, in capitals.
        read: Makes the value of a string, or of a default or a value from TOML.
        kinds: The types that a value in pyproject.toml may have.
        endless: "none" is allowed, too, and becomes None: no limit.
    """

    def __init__(
        self, name: str, read: Callable[[Any], Any], *kinds: type, endless: bool = False
    ) -> None:
        self.name = name
        self.read = read
        self.kinds = kinds or (str,)
        self.endless = endless

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value."""
        if self.endless and value == "none":
            return None
        try:
            return self.read(value)
        except (TypeError, ValueError) as exc:
            more = "; 'none' takes it away" if self.endless else ""
            self.fail(f"{exc}{more}", param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Split the value of an environment variable: at commas or blanks."""
        return [word for word in re.split(r"[,\s]+", rv) if word]


def seconds(*, positive: bool = False, endless: bool = False) -> Checked:
    """Return the type of durations: 90, 0.5, 200ms, 10m, 2h, 7d."""
    read = functools.partial(_seconds, positive=positive)
    return Checked("seconds", read, int, float, str, endless=endless)


def integer(minimum: int, maximum: int = 2**31 - 1, *, endless: bool = False) -> Checked:
    """Return the type of whole numbers within bounds."""

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
            value = int(value)
        return whole(value, "it", minimum=minimum, maximum=maximum)

    return Checked("n", read, int, endless=endless)


def _seconds(value: Any, *, positive: bool = False) -> float:
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip().lower())
        if found is None or (found[2] or "s") not in _UNITS:
            raise ValueError(f"{value!r} is no duration: write seconds, or 200ms, 10m, 2h, 7d")
        value = float(found[1]) * _UNITS[found[2] or "s"]
    return duration(value, "it", positive=positive)


def _rate(value: Any) -> Rate:
    """Return a rate such as 1000/60, 10/1m or 1000/60+20: the last is its burst."""
    found = _RATE.fullmatch(str(value).replace(" ", ""))
    if found is None:
        raise ValueError(
            f"{value!r} is no rate: write COUNT/SECONDS, such as 1000/60, and COUNT/SECONDS+BURST"
            " if some may start early"
        )
    return Rate(int(found[1]), per=_seconds(found[2]), burst=int(found[3] or 0))


def _queue_limit(value: Any) -> tuple[str, int | None]:
    """Return the queue's name and its limit; None: no limit of its own."""
    queue, colon, limit = str(value).rpartition(":")
    if not colon:
        return label(limit, "the queue"), None
    if not re.fullmatch(r"[0-9]+", limit):
        raise ValueError(f"{value!r} is not NAME or NAME:N, N a whole number")
    return label(queue, "the queue"), whole(int(limit), "its limit", minimum=1)


def _prefetch(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
        value = int(value)
    try:
        return whole(value, "it", minimum=0)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is neither a whole number nor auto") from None


def _instant(value: Any, examples: str = _INSTANTS) -> dt.datetime:
    try:
        return instant(dt.datetime.fromisoformat(value), "it")
    except ValueError:
        raise ValueError(f"{value!r} is no instant with a time zone: write {examples}") from None


def _past(value: Any) -> dt.datetime:
    """Return an instant, or so long ago: an age has a unit, since 2029 may be a year."""
    if isinstance(value, str) and re.fullmatch(r"[\d.]+\s*[a-z]+", value.strip().lower()):
        return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=_seconds(value))
    return _instant(value, f"{_INSTANTS}, or an age such as 2h")


def _json(value: Any) -> Any:
    try:
        return json.loads(str(value), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"that is not JSON: {exc}") from exc


def _json_object(value: Any) -> dict[str, Any]:
    params = _json(sys.stdin.read() if value == "-" else value)
    if not isinstance(params, dict):
        raise TypeError('params are a JSON object by name, such as {"width": 640}')
    return cast("dict[str, Any]", params)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has no {name}")


LABEL = Checked("name", lambda value: label(value, "it"))
STREAM_NAME = Checked("name", stream_name)
LIMIT = integer(0, endless=True)
RATE = Checked("rate", _rate, endless=True)
QUEUE_LIMIT = Checked("name[:n]", _queue_limit)  # a queue, and how many tasks of it to hold
PREFETCH = Checked("n|auto", _prefetch, int, str)
INSTANT = Checked("instant", _instant)  # in ISO 8601, with its time zone
PAST = Checked("instant", _past)
JSON = Checked("json", _json)
JSON_OBJECT = Checked("json", _json_object)  # "-" reads it from stdin
