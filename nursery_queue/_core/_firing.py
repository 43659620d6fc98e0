"""Which ticks of a schedule that is due have a task, and when its next one is."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools

from collections.abc import Iterator, Sequence

import attrs

from ._error_text import message_of, one_line
from ._schedules import Misfire, Overlap
from ._when import LAST, When, read_when


MOST = 1000  # ticks that are caught up with
# Ticks beyond these that are skipped at a time: about 20 ms of counting.
CHUNK = 1000
HOLD = dt.timedelta(seconds=60)  # until what cannot fire is tried again


@attrs.frozen(kw_only=True)
class DueSchedule:
    """A schedule whose next instant has come, as a store reads it."""

    name: str
    cron: str | None
    tz: str
    every: float | None
    anchor: dt.datetime | None
    misfire: Misfire
    overlap: Overlap
    jitter: float
    since: dt.datetime  # all ticks up to here have been dealt with
    missed_until: dt.datetime  # of what came before, no worker was there or it was paused
    now: dt.datetime
    busy: bool = False  # the task before has not ended
    known: bool = True  # a live worker knows its task type
    task_type: str = ""
    error: str | None = None  # why it could not fire the last time

    def when(self) -> When:
        """Return when it fires, or raise `ValueError`: zones and tables may have changed."""
        return read_when(self.cron, self.tz, self.every, self.anchor)


@attrs.frozen
class Tick:
    """A tick that is to have a task, and when that is due; None: at once."""

    at: dt.datetime
    run_at: dt.datetime | None = None


@attrs.frozen(kw_only=True)
class Firing:
    """What becomes of a schedule that was due."""

    name: str
    since: dt.datetime
    next_at: dt.datetime | None
    look_at: dt.datetime  # when it is due again
    ticks: Sequence[Tick] = ()
    skipped: int = 0
    cancels: bool = False  # the task before, if it has not ended
    error: str | None = None


def decide_some(due: Sequence[DueSchedule], room: int) -> Iterator[Firing]:
    """Yield what becomes of the first of *due*: as many as have about *room* ticks together.

    None has more than a share of it: so the others do not wait until one has caught up.
    """
    share = max(room // 10, room // max(len(due), 1), 1)
    for each in due:
        firing = decide(each, share if room > share else max(room, 1))
        yield firing
        room -= len(firing.ticks) + firing.skipped // 10  # these cost no more than counting
        if room <= 0:
            return


def decide(due: DueSchedule, most: int = MOST) -> Firing:
    """Return what becomes of *due*, *most* ticks of it; the rest comes when it is asked again.

    Never raises: what is wrong is in its error.
    """
    if not due.known:
        return hold(due, f"no live worker knows its task type {due.task_type!r}")
    try:
        return _decide(due, most)
    except Exception as exc:  # noqa: BLE001  # one bad schedule is no reason to stop the others
        return hold(due, one_line(f"{type(exc).__name__}: {message_of(exc)}"))


def hold(due: DueSchedule, error: str) -> Firing:
    """Leave its ticks for later."""
    return Firing(name=due.name, since=due.since, next_at=None, look_at=due.now + HOLD, error=error)


def _decide(due: DueSchedule, most: int) -> Firing:
    when = due.when()
    since = min(due.since, due.now)  # the clock was ahead: no tick has another task for that
    coming = when.ticks(since)
    passed: list[dt.datetime] = []
    next_at: dt.datetime | None = None
    for tick in itertools.islice(coming, MOST + CHUNK):
        if tick > due.now:
            next_at = tick if tick <= LAST else None
            break
        passed.append(tick)
    else:
        if len(passed) == MOST + CHUNK:  # those at the front are too many in any case
            return Firing(
                name=due.name,
                since=passed[CHUNK - 1],
                next_at=passed[CHUNK],
                look_at=due.now,
                skipped=CHUNK,
            )
    missed = [tick for tick in passed if tick < _missed_until(due)]
    wanted = [Tick(tick) for tick in _caught_up(due.misfire, missed)]
    wanted += [Tick(tick, _late(due, tick)) for tick in passed[len(missed) :]]
    ticks = _one_at_a_time(due, wanted)
    look_at = next_at or due.now + dt.timedelta(days=1)
    if len(ticks) > most:  # then the rest is due at once, behind what is due already
        next_at, look_at, ticks = ticks[most].at, due.now, ticks[:most]
        passed = passed[: passed.index(ticks[-1].at) + 1]
    return Firing(
        name=due.name,
        since=passed[-1] if passed else since,
        next_at=next_at,
        look_at=look_at,
        ticks=ticks,
        skipped=len(passed) - len(ticks),
        cancels=due.overlap == "cancel" and due.busy and bool(ticks),
    )


def _missed_until(due: DueSchedule) -> dt.datetime:
    """Return from when on ticks have been on time."""
    if due.error is not None:  # while it could not fire, none was
        return due.now
    # A worker that began in the future was there when the clock was set back.
    return due.missed_until if due.missed_until <= due.now else due.since


def _caught_up(misfire: Misfire, missed: Sequence[dt.datetime]) -> Sequence[dt.datetime]:
    most = {"latest": 1, "skip": 0, "all": MOST}[misfire]
    return missed[max(0, len(missed) - most) :]


def _one_at_a_time(due: DueSchedule, wanted: Sequence[Tick]) -> Sequence[Tick]:
    """Return the ticks that *overlap* lets through: the task of one has not ended at the next."""
    match due.overlap:
        case "skip":
            return () if due.busy else wanted[:1]
        case "cancel":
            return wanted[-1:]
        case _:
            return wanted


def _late(due: DueSchedule, tick: dt.datetime) -> dt.datetime:
    """Return when the task of *tick* is due: the same on every machine."""
    if not due.jitter:
        return tick
    text = f"{due.name}\n{tick.astimezone(dt.UTC).isoformat()}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return tick + dt.timedelta(seconds=due.jitter * int.from_bytes(digest) / 2**64)
