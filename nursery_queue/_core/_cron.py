"""Cron expressions: five fields, read by cronsim, and the instants that they stand for."""

from __future__ import annotations

import datetime as dt
import functools
import re
import zoneinfo

from collections.abc import Iterator, Sequence
from typing import Any

from ._local_time import changes, instant_of, offset_at


NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_BLANKS = " \t\n\r\f\v"
# Cronsim takes numbers with any number of digits, and digits of other scripts; the table does not.
_PART = re.compile(r"(?!.*[0-9]{3})[0-9A-Za-z*/,#-]+")
_LONGEST = 500  # characters: a field that lists every minute has 170
# From here to the next leap day there is every day of the week in every month.
_SOME_DAY = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def fields_of(expression: object) -> str:
    """Return the five fields of *expression*, checked, in capitals, one space apart.

    Raises:
        TypeError: It is no string.
        ValueError: It is no cron expression; the message quotes what is wrong.
        ImportError: cronsim is not installed.
    """
    if not isinstance(expression, str):
        raise TypeError(f"a cron expression is a string, not {expression!r:.100}")
    if len(expression) > _LONGEST:
        msg = f"a cron expression has at most {_LONGEST} characters, not {expression!r:.60}..."
        raise ValueError(msg)
    text = expression.strip(_BLANKS)
    if text.startswith("@"):
        if (meant := NICKNAMES.get(text.lower())) is None:
            known = ", ".join(NICKNAMES)
            raise ValueError(f"cron expression {expression!r}: there is no {text!r}, only {known}")
        return meant
    parts = re.findall(f"[^{_BLANKS}]+", text)
    if len(parts) != len(FIELDS):
        raise ValueError(
            f"cron expression {expression!r} has {len(parts)} fields, not five: "
            f"{', '.join(FIELDS)}; seconds and years are not among them"
        )
    _check_each(expression, parts)
    return " ".join(parts).upper()


def _check_each(expression: str, parts: Sequence[str]) -> None:
    """Raise `ValueError`, which quotes the field that is none, or the day that never comes."""
    cronsim = _cronsim()
    for number, (part, name) in enumerate(zip(parts, FIELDS, strict=True)):
        alone = ["*"] * len(parts)
        alone[number] = part
        if _PART.fullmatch(part) is None:
            raise ValueError(f"cron expression {expression!r}: {part!r} is no {name}")
        # An assert and a conversion of its own catch what its checks do not.
        try:
            cronsim.CronSim(" ".join(alone), _SOME_DAY)
        except (cronsim.CronSimError, ValueError, AssertionError):
            msg = f"cron expression {expression!r}: {part!r} is no {name}"
            raise ValueError(msg) from None
    try:
        next(cronsim.CronSim(" ".join(parts), _SOME_DAY))
    except (cronsim.CronSimError, StopIteration):  # it has looked through fifty years
        day, month = parts[2], parts[3]
        msg = f"cron expression {expression!r} stands for no day at all: {day!r} of {month!r}"
        raise ValueError(msg) from None


@functools.lru_cache(maxsize=256)
def zone_of(name: object) -> dt.tzinfo:
    """Return the time zone called *name*.

    Raises:
        TypeError: It is no string.
        ValueError: There is none; the message quotes it.
    """
    if not isinstance(name, str):
        raise TypeError(f"tz must be the name of a time zone, not {name!r:.100}")
    if name == "UTC":  # known also where no zones are installed
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    # The key may be a directory, or lead out of it.
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {name!r:.100} here: write it as 'Europe/Berlin'; if that is "
            f"unknown, too, the machine has no zones: pip install tzdata"
        ) from None


def ticks_of(fields: str, zone: dt.tzinfo, after: dt.datetime) -> Iterator[dt.datetime]:
    """Yield the instants behind *after* that *fields* stand for in *zone*, in UTC, in order.

    As Debian's cron does it. With a wildcard in minute or hour they follow the clock: none in an
    hour that is skipped, and all of them twice in one that comes twice. Otherwise a local time
    that is skipped counts at the change, and one that comes twice counts the first time.
    """
    minute, hour, *_ = fields.split()
    follows = minute.startswith("*") or hour.startswith("*")
    found = _following(fields, zone, after) if follows else _fixed(fields, zone, after)
    last = after
    try:
        for tick in found:
            if tick > last:
                yield tick
                last = tick
    except OverflowError:  # the year 9999
        return


def _fixed(fields: str, zone: dt.tzinfo, after: dt.datetime) -> Iterator[dt.datetime]:
    # From before the change, if there was one just now: what was skipped counts at its end.
    start = after.astimezone(zone).replace(tzinfo=None) - dt.timedelta(days=1)
    for local in _matches(fields, start):
        yield instant_of(local, zone)


def _following(fields: str, zone: dt.tzinfo, after: dt.datetime) -> Iterator[dt.datetime]:
    """Go from one change of the offset to the next: in between local time is plain."""
    ahead = changes(after, zone)
    known: list[dt.datetime] = [after]  # up to where the offset is known, the last of it
    start = after
    while True:
        offset = offset_at(start, zone)
        local = start.astimezone(dt.UTC).replace(tzinfo=None) + offset
        # A second before, so that the very instant of the change counts.
        begin = local if start == after else local - dt.timedelta(seconds=1)
        change: dt.datetime | None = None
        for match in _matches(fields, begin):
            tick = (match - offset).replace(tzinfo=dt.UTC)
            while change is None and known[0] <= tick:
                change = next(ahead)
                known[0] = change or known[0] + dt.timedelta(hours=12)
            if change is not None and tick >= change:
                break
            yield tick
        else:
            return
        start = change


def _matches(fields: str, after: dt.datetime) -> Iterator[dt.datetime]:
    """Yield the local times behind *after*, both naive, as if there were no changes."""
    found = _cronsim().CronSim(fields, after.replace(tzinfo=dt.UTC))
    return (each.replace(tzinfo=None) for each in found)


def _cronsim() -> Any:
    """Return the library. Imported at first use: programs without cron do without it."""
    try:
        import cronsim  # noqa: PLC0415  # an extra, and only for those who need it
    except ImportError:
        msg = "cron expressions are an extra that is not installed: pip install"
        raise ImportError(f"{msg} 'nursery-queue[schedules]'", name="cronsim") from None
    return cronsim
