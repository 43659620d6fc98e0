"""Between local times and instants, over the changes of an offset."""

from __future__ import annotations

import datetime as dt

from collections.abc import Iterator


STEP = dt.timedelta(hours=12)  # no zone changes its offset twice in so short a time


def instant_of(local: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return the instant, in UTC, of a naive *local* time.

    Of a time that comes twice the first; of a time that is skipped the instant of the change.
    """
    # In a gap, fold 0 has the offset from before the change, which ends up behind it, and fold 1
    # the other way round (PEP 495).
    late = local.replace(tzinfo=zone, fold=0).astimezone(dt.UTC)
    if late.astimezone(zone).replace(tzinfo=None) == local:
        return late
    early = local.replace(tzinfo=zone, fold=1).astimezone(dt.UTC)
    return _change(early, late, zone)


def offset_at(instant: dt.datetime, zone: dt.tzinfo) -> dt.timedelta:
    """Return the offset from UTC that holds at *instant*."""
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def changes(after: dt.datetime, zone: dt.tzinfo) -> Iterator[dt.datetime | None]:
    """Yield the instants behind *after* at which the offset changes.

    And None for every step in which it does not: a zone may never change it again.
    """
    offset = offset_at(after, zone)
    while True:
        before, after = after, after + STEP
        if offset_at(after, zone) == offset:
            yield None
        else:
            change = _change(before, after, zone)
            offset = offset_at(change, zone)
            after = change
            yield change


def _change(before: dt.datetime, after: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return the first instant behind *before*, at most *after*, that has another offset.

    All zones change it at a whole second; *before* and *after* are whole seconds apart.
    """
    offset, second = offset_at(before, zone), dt.timedelta(seconds=1)
    while after - before > second:
        middle = before + dt.timedelta(seconds=(after - before) // second // 2)
        if offset_at(middle, zone) == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)
