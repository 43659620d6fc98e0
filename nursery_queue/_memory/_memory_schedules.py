"""The schedules of `MemoryStore`."""

from __future__ import annotations

import datetime as dt
import json

from typing import Any

import attrs

from nursery_queue._core._firing import DueSchedule, Firing
from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._schedules import NewSchedule, ScheduleStatus, as_it_stands, when_columns


@attrs.frozen(kw_only=True)
class Schedule:
    """A schedule, and what it has done; never changes."""

    asked: NewSchedule
    app: str | None
    since: dt.datetime
    look_at: dt.datetime
    paused: bool = False
    next_at: dt.datetime | None = None
    last_tick: dt.datetime | None = None
    last_task_id: int | None = None
    earlier: tuple[int, ...] = ()  # tasks that had not ended at a `trigger`
    fired: int = 0
    skipped: int = 0
    error: str | None = None
    resumed_at: dt.datetime | None = None
    declared: NewSchedule | None = None
    dropped: bool = False  # as in PostgreSQL
    orphaned: bool = False

    @property
    def before(self) -> tuple[int, ...]:
        """Its tasks that may not have ended."""
        return self.earlier if self.last_task_id is None else (*self.earlier, self.last_task_id)

    @property
    def task_type(self) -> str:
        """The type of its tasks."""
        return self.asked.task.task_type

    def is_for(self, worker: WorkerInfo, known: set[str]) -> bool:
        """Whether *worker* fires it, or has to say that none can: *known* types have workers."""
        if self.app is not None:
            return self.app == worker.app
        return self.task_type in worker.task_types or self.task_type not in known

    def changed(self, asked: NewSchedule, now: dt.datetime, **changes: Any) -> Schedule:
        """Return it with what is *asked* now."""
        if asked.when != self.asked.when:  # a tick at this very instant does not fire
            changes |= {"since": now, "look_at": now, "next_at": None, "error": None}
        return attrs.evolve(self, asked=asked, **changes).paused_or_not(asked.paused, now)

    def paused_or_not(self, paused: bool | None, now: dt.datetime) -> Schedule:
        """Return it paused, or resumed, or as it is; if it could not fire, it may now."""
        look_at = self.look_at if self.error is None else now
        if paused is None:
            paused = self.paused
        resumed_at = now if self.paused and not paused else self.resumed_at
        return attrs.evolve(self, look_at=look_at, paused=paused, resumed_at=resumed_at)

    def due(
        self, now: dt.datetime, *, since: dt.datetime | None, busy: bool, known: bool
    ) -> DueSchedule:
        """Return what is to be known to decide about it; *since* when a worker has been there."""
        begins = [each for each in (since, self.resumed_at) if each is not None]
        return DueSchedule(
            name=self.asked.name,
            **when_columns(self.asked.when),
            misfire=self.asked.misfire,
            overlap=self.asked.overlap,
            jitter=self.asked.jitter,
            since=self.since,
            missed_until=max(begins, default=now),
            now=now,
            busy=busy,
            known=known,
            task_type=self.task_type,
            error=self.error,
        )

    def moved_on(self, firing: Firing) -> Schedule:
        """Return it after its ticks have been dealt with."""
        return attrs.evolve(
            self,
            since=firing.since,
            next_at=firing.next_at,
            look_at=firing.look_at,
            skipped=self.skipped + firing.skipped,
            error=firing.error,
        )

    def ticked(self, tick: dt.datetime, task_id: int | None) -> Schedule:
        """Return it after a tick has had its task; *task_id* None: it is not the newest."""
        return attrs.evolve(
            self,
            fired=self.fired + 1,
            last_tick=tick if self.last_tick is None else max(self.last_tick, tick),
            last_task_id=task_id or self.last_task_id,
            earlier=self.earlier if task_id is None else (),
        )

    def status(self, queue: str, now: dt.datetime, *, orphaned: bool) -> ScheduleStatus:
        """Return it as it stands."""
        return as_it_stands(
            name=self.asked.name,
            **when_columns(self.asked.when),
            since=self.since,
            next_at=self.next_at,
            last_tick=self.last_tick,
            last_task_id=self.last_task_id,
            fired=self.fired,
            skipped=self.skipped,
            paused=self.paused,
            app=self.app,
            task_type=self.task_type,
            queue=queue,
            orphaned=orphaned,
            misfire=self.asked.misfire,
            overlap=self.asked.overlap,
            jitter=self.asked.jitter,
            params=json.loads(self.asked.task.params),
            error=self.error,
            now=now,
        )
