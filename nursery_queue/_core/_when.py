"""When a schedule fires: `Cron` or `Every`, and the ticks that they stand for."""

from __future__ import annotations

import datetime as dt
import itertools

from collections.abc import Iterator

import attrs

from ._checks import duration, instant, whole


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# What every place knows as instants: a zone may take a day from either end.
FIRST = dt.datetime(2, 1, 1, tzinfo=dt.UTC)
LAST = dt.datetime(9998, 12, 31, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
MOST_PREVIEWED = 100_000


def _as_period(value: object) -> float:
    seconds = duration(value, "seconds")
    if seconds < 1:
        raise ValueError(f"a schedule has at least 1 second between its ticks, not {value!r}")
    return seconds


def _as_anchor(value: object) -> dt.datetime:
    if value is None:
        return EPOCH
    if not FIRST <= (anchor := instant(value, "anchor")) <= LAST:
        raise ValueError(f"anchor must be within the years 2 to 9998, not {value!r}")
    return anchor


@attrs.frozen
class Cron:
    """The instants that a cron expression stands for, by the clock of a time zone.

    A local time that daylight saving skips fires once, right after the gap, and one that comes
    twice fires once, as in Debian's cron. With a wildcard in minute or hour (``*``, ``*/5``) the
    schedule follows the clock: it does not fire in a skipped hour, and fires twice as often in a
    repeated one.

    Args:
        expression: Five fields: minute, hour, day of month, month, day of week (0 and 7 are
            Sunday), with lists, ranges, steps and English names; ``L`` is the last day of the
            month, ``LW`` its last weekday, ``5L`` its last Friday and ``1#2`` its second Monday.
            If both days are given, either may match. Or one of ``@hourly @daily @midnight @weekly
            @monthly @yearly @annually``.
        tz: The time zone's name, such as ``Europe/Berlin``.

    Raises:
        ValueError: The expression, or the zone, is none; the message quotes what is wrong.
        TypeError: One of them is no string.
        ImportError: The extra ``schedules`` is not installed.
    """

    expression: str
    tz: str = "UTC"
    _fields: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        from ._cron import fields_of, zone_of  # noqa: PLC0415  # only for those who need it

        object.__setattr__(self, "_fields", fields_of(self.expression))
        zone_of(self.tz)

    def __str__(self) -> str:
        return f"{self.expression} ({self.tz})"

    @property
    def zone(self) -> dt.tzinfo:
        """The time zone."""
        from ._cron import zone_of  # noqa: PLC0415  # as above

        return zone_of(self.tz)

    def ticks(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """Yield every tick behind *after*, in UTC, in order."""
        from ._cron import ticks_of  # noqa: PLC0415  # as above

        return ticks_of(self._fields, self.zone, after)


@attrs.frozen
class Every:
    """Instants at equal distances, counted from an anchor.

    Args:
        seconds: The distance, in seconds or as a timedelta; at least 1 second. Rounded to
            microseconds.
        anchor: An instant to count from, in both directions; None: 1970-01-01 00:00 UTC, so that
            ``Every(3600)`` fires on the hour (of UTC), whenever it was declared.

    Raises:
        ValueError: Less than a second, more than 100 years, or an anchor without a time zone, or
            outside of the years 2 to 9998.
        TypeError: No number and no timedelta, or no datetime.
    """

    seconds: float = attrs.field(converter=_as_period)
    anchor: dt.datetime = attrs.field(default=None, converter=_as_anchor)  # in UTC

    def __str__(self) -> str:
        return f"every {self.seconds:g} s"

    @property
    def zone(self) -> dt.tzinfo:
        """UTC: equal distances need no other."""
        return dt.UTC

    def ticks(self, after: dt.datetime) -> Iterator[dt.datetime]:
        """Yield every tick behind *after*, in UTC, in order."""
        # In whole microseconds: no error adds up.
        step = round(self.seconds * 1_000_000) * _MICROSECOND
        try:
            tick = self.anchor + ((after - self.anchor) // step + 1) * step
            while True:
                yield tick
                tick += step
        except OverflowError:  # the year 9999, or 1
            return


When = Cron | Every


def as_when(value: object) -> When:
    """Return *value*, or raise `TypeError` if it does not say when."""
    if isinstance(value, Cron | Every):
        return value
    hint = f": write nq.Cron({value!r})" if isinstance(value, str) else ""
    raise TypeError(f"a schedule's `when` is a Cron or an Every, not {value!r:.100}{hint}")


def read_when(cron: str | None, tz: str, every: float | None, anchor: dt.datetime | None) -> When:
    """Return when a stored schedule fires.

    Raises:
        ValueError: It cannot be read here.
        ImportError: A library for it is missing.
    """
    if cron is not None:
        return Cron(cron, tz)
    return Every(0.0 if every is None else every, anchor)


def preview(when: When, count: int = 5, after: dt.datetime | None = None) -> list[dt.datetime]:
    """Return the next ticks of *when*, by this machine's clock and without a database.

    In local time, with the offset from UTC that holds then. Fewer if there are no more.

    Args:
        when: A `Cron` or an `Every`.
        count: How many, at most 100,000.
        after: The ticks behind this instant; None: now.

    Raises:
        ValueError: *count* is negative, or *after* has no time zone.
        TypeError: *when* is neither.
    """
    when = as_when(when)
    start = dt.datetime.now(dt.UTC) if after is None else instant(after, "after")
    most = whole(count, "count", minimum=0, maximum=MOST_PREVIEWED)
    return [local(tick, when) for tick in itertools.islice(when.ticks(start), most)]


def local(tick: dt.datetime, when: When) -> dt.datetime:
    """Return *tick* in local time, with its offset alone.

    Of two times with one zone, Python compares the clocks; in an hour that comes twice that says
    nothing (PEP 495).
    """
    if when.zone is dt.UTC:
        return tick.astimezone(dt.UTC)
    shown = tick.astimezone(when.zone)
    offset, name = shown.utcoffset(), shown.tzname()
    assert offset is not None
    assert name is not None
    return tick.astimezone(dt.timezone(offset, name))
