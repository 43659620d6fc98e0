"""What a rate lets start: GCRA, which remembers one instant and nothing else.

That instant, *next_at*, is when the next task would start if all came evenly (the theoretical
arrival time). Each start moves it on by `Rate.interval`, and may come early by `Rate.tolerance`.
Instants are whole microseconds, as PostgreSQL has them, and what lies between two is rounded up, so
that a rate is never exceeded; the numbers are exact until then.
"""

from __future__ import annotations

import datetime as dt
import math

from fractions import Fraction

from ._rate import Rate


MICROSECOND = dt.timedelta(microseconds=1)
DOUBT = dt.timedelta(minutes=1)  # later than starts can have made it: the clock was ahead


def may_start(rate: Rate, next_at: dt.datetime | None, now: dt.datetime) -> int:
    """Return how many tasks may start now. *next_at* None: none has started."""
    if next_at is None or next_at <= now:
        return rate.burst + 1
    open_for = (now - opens_at(rate, next_at, now)) // MICROSECOND
    return max(0, math.floor(open_for / _interval(rate)) + 1)


def after_starts(
    rate: Rate, next_at: dt.datetime | None, now: dt.datetime, count: int
) -> dt.datetime:
    """Return the new *next_at* when *count* tasks start now."""
    begin = now if next_at is None else max(now, _believed(rate, next_at, now))
    return begin + _whole(count * _interval(rate))


def opens_at(rate: Rate, next_at: dt.datetime, now: dt.datetime) -> dt.datetime:
    """Return the first instant at which a task may start, as it looks *now*."""
    return _believed(rate, next_at, now) - _whole(rate.burst * _interval(rate))


def under(rate: Rate, next_at: dt.datetime, now: dt.datetime) -> dt.datetime:
    """Return *next_at* under a new *rate*: no later than if that had always been the rate.

    So what may start under a raised rate counts at once.
    """
    latest = _whole(rate.burst * _interval(rate)) + _whole(_interval(rate))
    return min(next_at, now + latest)


def _believed(rate: Rate, next_at: dt.datetime, now: dt.datetime) -> dt.datetime:
    """Return *next_at*, or if it is too late to be true: as if the burst had just been used.

    Then one task may start now, and what that makes of it is right again.
    """
    if next_at <= now + DOUBT + _whole((rate.burst + 1) * _interval(rate)):
        return next_at
    return now + _whole(rate.burst * _interval(rate))


def _interval(rate: Rate) -> Fraction:
    """Return `Rate.interval` in microseconds, of the number as it is written: 0.1 is a tenth."""
    return Fraction(repr(rate.per)) * 1_000_000 / rate.count


def _whole(microseconds: Fraction) -> dt.timedelta:
    return math.ceil(microseconds) * MICROSECOND
