"""Numbers and instants that come from users, checked where they come in."""

from __future__ import annotations

import datetime as dt
import math


# timedelta and PostgreSQL intervals stay exact below this.
LONGEST = 100 * 365.25 * 86_400.0


def duration(value: object, name: str, *, positive: bool = False) -> float:
    """Return *value* in seconds, or raise `ValueError` naming it.

    Zero is allowed unless *positive*. NaN, infinity, negative and more than 100 years are not.
    """
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    value = _number(value, f"{name} must be a number of seconds or a timedelta, not {value!r}")
    # NaN fails the comparison, too, and an int that is too large for a float does not overflow.
    if not 0 <= value <= LONGEST or (positive and value == 0):
        bounds = "more than 0" if positive else "0 or more"
        raise ValueError(f"{name} must be {bounds} seconds and at most 100 years, not {value!r}")
    return float(value)


def _number(value: object, complaint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(complaint)
    return value


def limit(value: object, name: str, *, positive: bool = False) -> float:
    """Return *value*, a time limit in seconds, checked as by `duration`. Infinity: none."""
    if type(value) is float and value == math.inf:
        return math.inf
    return duration(value, name, positive=positive)


def whole(value: object, name: str, *, minimum: int, maximum: int = 2**31 - 1) -> int:
    """Return *value*, a whole number within the bounds, or raise naming it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} must be between {minimum} and {maximum}, not {value!r}")
    return value


def real(value: object, name: str, *, minimum: float, maximum: float) -> float:
    """Return *value*, a finite number within the bounds, or raise naming it."""
    value = _number(value, f"{name} must be a number, not {value!r}")
    if not minimum <= value <= maximum:  # NaN fails this comparison too
        raise ValueError(f"{name} must be between {minimum:g} and {maximum:g}, not {value!r}")
    return float(value)


def instant(value: object, name: str) -> dt.datetime:
    """Return *value*, a timezone-aware datetime, in UTC, or raise naming it.

    It is a datetime of Python's own: others, and some offsets, are not written as PostgreSQL reads
    them.
    """
    if not isinstance(value, dt.datetime):
        raise TypeError(f"{name} must be a datetime, not {value!r}")
    if value.tzinfo is None or value.utcoffset() is None:
        msg = f"{name} must be timezone-aware, not {value!r}: give it a tzinfo such as UTC"
        raise ValueError(msg)
    try:
        utc = dt.datetime.astimezone(value, dt.UTC)
    except OverflowError:
        msg = f"{name} must be within the years 1 to 9999 in UTC, not {value!r}"
        raise ValueError(msg) from None
    return dt.datetime.combine(dt.datetime.date(utc), dt.datetime.timetz(utc))


def label(value: object, name: str) -> str:
    """Return *value*, a short printable name, or raise naming it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if not value or len(value) > 255 or not value.isprintable():
        raise ValueError(f"{name} must be 1 to 255 printable characters, not {value!r}")
    return value
