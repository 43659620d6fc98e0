"""What values on the command line look like."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from nursery_queue._core._checks import duration, instant, label, whole
from nursery_queue._core._streams import stream_name


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic before click 8.4

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)")


class Duration(ParamType):
    """Seconds, or a number with a unit: 90, 0.5, 200ms, 10m, 2h, 7d."""

    name = "seconds"

    def __init__(self, *, positive: bool = False, endless: bool = False) -> None:
        self.positive = positive
        self.endless = endless  # "none" is allowed, and means no limit

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """Return seconds; None for no limit."""
        if self.endless and value == "none":
            return None
        if isinstance(value, str):
            found = _DURATION.fullmatch(value.strip().lower())
            if found is None or (found[2] or "s") not in _UNITS:
                hint = ", or none" if self.endless else ""
                self.fail(
                    f"{value!r} is no duration: write seconds, or 200ms, 10m, 2h, 7d{hint}",
                    param,
                    ctx,
                )
            value = float(found[1]) * _UNITS[found[2] or "s"]
        try:
            return duration(value, "it", positive=self.positive)
        except (TypeError, ValueError) as exc:
            self.fail(str(exc), param, ctx)


class Whole(ParamType):
    """A whole number within bounds."""

    name = "n"

    def __init__(self, minimum: int, maximum: int = 2**31 - 1, *, endless: bool = False) -> None:
        self.minimum, self.maximum = minimum, maximum
        self.endless = endless  # "none" is allowed, and means no limit

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return the number; None for no limit."""
        if self.endless and value == "none":
            return None
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
            value = int(value)
        try:
            return whole(value, "it", minimum=self.minimum, maximum=self.maximum)
        except (TypeError, ValueError) as exc:
            self.fail(f"{exc}{', or none' if self.endless else ''}", param, ctx)


class Label(ParamType):
    """A name: short and printable."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        try:
            return label(value, "it")
        except (TypeError, ValueError) as exc:
            self.fail(str(exc), param, ctx)


class StreamName(ParamType):
    """What a stream can be called."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        try:
            return stream_name(value)
        except (TypeError, ValueError) as exc:
            self.fail(str(exc), param, ctx)


class QueueLimit(ParamType):
    """A queue, and how many tasks of it to hold at once: NAME or NAME:N."""

    name = "name[:n]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | None]:
        """Return the queue's name and its limit; None: no limit of its own."""
        queue, colon, limit = str(value).rpartition(":")
        if not colon:
            queue = str(value)
        elif not re.fullmatch(r"[0-9]+", limit):
            self.fail(f"{value!r} is not NAME or NAME:N, N a whole number", param, ctx)
        try:
            return label(queue, "the queue"), (
                whole(int(limit), "its limit", minimum=1) if colon else None
            )
        except ValueError as exc:
            self.fail(str(exc), param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Split the value of an environment variable: at commas or blanks."""
        return [word for word in re.split(r"[,\s]+", rv) if word]


class Prefetch(ParamType):
    """A number of tasks, or "auto"."""

    name = "n|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        """Return the number, or "auto"."""
        if value == "auto":
            return "auto"
        if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
            value = int(value)
        try:
            return whole(value, "it", minimum=0)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


class Instant(ParamType):
    """An instant with its time zone, in ISO 8601."""

    name = "instant"
    examples = "2030-01-31T08:00+01:00 or ...Z"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        """Return an aware datetime."""
        try:
            return instant(dt.datetime.fromisoformat(value), "it")
        except ValueError:
            self.fail(
                f"{value!r} is no instant with a time zone: write {self.examples}",
                param,
                ctx,
            )


class Past(Instant):
    """An instant, or how long ago it was: a number with its unit, since 2029 may be a year."""

    examples = "2030-01-31T08:00+01:00 or ...Z, or an age such as 2h"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        """Return an aware datetime."""
        if isinstance(value, str) and re.fullmatch(r"[\d.]+\s*[a-z]+", value.strip().lower()):
            age = Duration().convert(value, param, ctx)
            assert age is not None
            return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age)
        return super().convert(value, param, ctx)


class Json(ParamType):
    """Any JSON value."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value."""
        try:
            return json.loads(str(value), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            self.fail(f"that is not JSON: {exc}", param, ctx)


class JsonObject(Json):
    """A JSON object; "-" reads it from stdin."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Return the object."""
        params = super().convert(sys.stdin.read() if value == "-" else value, param, ctx)
        if not isinstance(params, dict):
            self.fail('params are a JSON object by name, such as {"width": 640}', param, ctx)
        return cast("dict[str, Any]", params)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has no {name}")
