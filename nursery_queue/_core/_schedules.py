"""Schedules as they are asked for, and as they stand."""

from __future__ import annotations

import datetime as dt
import json

from typing import Any, Literal, get_args

import attrs

from ._checks import duration, label
from ._model import NewTask
from ._retry import waits
from ._when import Cron, Every, When, as_when, read_when


Misfire = Literal["latest", "skip", "all"]
Overlap = Literal["allow", "skip", "cancel"]

REMEMBERED = dt.timedelta(days=30)  # ticks that have had their task, from the tick or that task on
MOST_BACKFILLED = 10_000  # ticks in one call


def as_misfire(value: object) -> Misfire:
    """Return *value*, which says what becomes of ticks that passed meanwhile."""
    checked: Misfire = _one_of(value, Misfire, "misfire")
    return checked


def as_overlap(value: object) -> Overlap:
    """Return *value*, which says what a tick does while the task before it has not ended."""
    checked: Overlap = _one_of(value, Overlap, "overlap")
    return checked


def _one_of(value: object, words: Any, name: str) -> Any:
    known = get_args(words)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}")
    return value


def _as_name(value: object) -> str:
    return label(value, "name")


def _as_jitter(value: object) -> float:
    return duration(value, "jitter")


def _check_paused(_schedule: object, _field: object, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"paused must be True or False, not {value!r:.100}")


def when_columns(when: When) -> dict[str, Any]:
    """Return what the row of a schedule says of when it fires."""
    if isinstance(when, Cron):
        return {"cron": when.expression, "tz": when.tz, "every": None, "anchor": None}
    return {"cron": None, "tz": "UTC", "every": when.seconds, "anchor": when.anchor}


@attrs.frozen(kw_only=True)
class NewSchedule:
    """A schedule to be stored, checked."""

    name: str = attrs.field(converter=_as_name)
    when: When = attrs.field(converter=as_when)
    task: NewTask  # queue and priority None, key and on_complete *as declared*: as at each tick
    misfire: Misfire = attrs.field(default="latest", converter=as_misfire)
    overlap: Overlap = attrs.field(default="allow", converter=as_overlap)
    jitter: float = attrs.field(default=0.0, converter=_as_jitter)  # seconds
    # None: as it is; of a new one, no
    paused: bool | None = attrs.field(default=False, validator=_check_paused)

    def columns(self) -> dict[str, Any]:
        """Return what its row says, as JSON has it."""
        when, task = when_columns(self.when), self.task
        return {
            "name": self.name,
            **when,
            "anchor": when["anchor"] and when["anchor"].isoformat(),
            "task_type": task.task_type,
            "params": task.params,
            "queue": task.queue,
            "priority": task.priority,
            "key": task.key,
            "run_after": task.run_after,
            "max_attempts": task.max_attempts,
            "backoff": None if task.backoff is None else json.dumps(waits(task.backoff)),
            "timeout": None if task.timeout is None else str(task.timeout),  # may be infinity
            "keep_for": task.keep_for,
            "on_complete": task.on_complete,
            "context": task.context,
            "misfire": self.misfire,
            "overlap": self.overlap,
            "jitter": self.jitter,
            "paused": self.paused,
        }


@attrs.frozen(kw_only=True)
class ScheduleStatus:
    """A schedule as it stands. Instants are timezone-aware.

    `when` is None where it cannot be read, and `error` then says why.
    """

    name: str
    when: Cron | Every | None
    tz: str
    next_at: dt.datetime | None  # its next tick; None: there is none
    last_tick: dt.datetime | None  # the newest tick that has had its task
    last_task_id: int | None  # the task of its last tick, or of a `trigger` since
    fired: int  # ticks that have had their task
    skipped: int  # ticks that have had none, by `misfire` or `overlap`
    paused: bool
    source: Literal["code", "runtime"]  # declared by an App, or made at run time
    task_type: str
    queue: str
    app: str | None = None  # the App it belongs to; None: any worker fires it that knows its type
    orphaned: bool = False  # no code declares it any more: it does not fire
    misfire: Misfire = "latest"
    overlap: Overlap = "allow"
    jitter: float = 0.0  # seconds
    params: Any = attrs.field(default=None, repr=False)  # not for logs
    error: str | None = None  # why it could not fire when it was last tried


@attrs.frozen(kw_only=True)
class Problem:
    """A schedule that could not be stored, or could not fire, and why."""

    name: str
    error: str
    held: bool = False  # an open transaction is changing it: to be stored again later


@attrs.frozen(kw_only=True)
class Fired:
    """The answer of a store that was asked to fire what is due.

    *next_in*: seconds until the next tick of any schedule (None: there is none). *more*: more are
    due. *contended*: those are being fired by another worker, or somebody holds their rows.
    *problems*: of schedules that could not fire, and were not known to be unable to.
    """

    tasks: int = 0
    next_in: float | None = None
    more: bool = False
    contended: bool = False
    problems: tuple[Problem, ...] = ()


def as_it_stands(
    *,
    cron: str | None,
    tz: str,
    every: float | None,
    anchor: dt.datetime | None,
    since: dt.datetime,
    next_at: dt.datetime | None,
    error: str | None,
    app: str | None,
    paused: bool,
    orphaned: bool,
    now: dt.datetime,
    **fields: Any,
) -> ScheduleStatus:
    """Return the status of a stored schedule.

    Its next tick is worked out here where no worker has: none has come yet, or it is paused.
    """
    when: When | None = None
    try:
        when = read_when(cron, tz, every, anchor)
        if paused or next_at is None:
            next_at = next(when.ticks(max(since, now)), None)
    except (ValueError, ImportError) as exc:
        error = error or str(exc)
    return ScheduleStatus(
        when=when,
        tz=tz,
        next_at=None if orphaned else next_at,
        paused=paused,
        orphaned=orphaned,
        error=error,
        app=app,
        source="runtime" if app is None else "code",
        **fields,
    )
