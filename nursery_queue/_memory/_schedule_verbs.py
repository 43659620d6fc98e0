"""The verbs of `MemoryStore` for schedules."""

from __future__ import annotations

import datetime as dt

from collections.abc import Sequence

import attrs

from nursery_queue._core._firing import DueSchedule, Firing, Tick, decide_some
from nursery_queue._core._model import TaskRef, WorkerInfo
from nursery_queue._core._schedules import (
    REMEMBERED,
    Fired,
    NewSchedule,
    Problem,
    ScheduleStatus,
)
from nursery_queue._store import Bell

from ._memory_rows import check_task
from ._memory_schedules import Schedule
from ._memory_verbs import MemoryVerbs


@attrs.define(eq=False)
class ScheduleVerbs(MemoryVerbs):
    """Schedules in memory."""

    # -- for the client ----------------------------------------------------------

    async def schedules(self, name: str | None = None) -> list[ScheduleStatus]:
        await self._begin()
        tables, now = self._tables, self._tables.now()
        return [
            each.status(
                tables.as_declared(each.asked.task).queue or "default",
                now,
                orphaned=each.app is not None and (each.orphaned or not self._is_declared(each)),
            )
            for key, each in sorted(tables.schedules.items())
            if name in (None, key)
        ]

    async def set_schedule(self, schedule: NewSchedule) -> None:
        await self._begin()
        check_task(schedule.task)
        rows, now = self._tables.schedules, self._tables.now()
        if (known := rows.get(schedule.name)) is None:
            rows[schedule.name] = Schedule(
                asked=schedule, app=None, since=now, look_at=now, paused=schedule.paused or False
            )
        else:
            rows[schedule.name] = known.changed(schedule, now)
        self._ring(Bell.SCHEDULE)

    async def delete_schedule(self, name: str) -> bool:
        await self._begin()
        return self._tables.schedules.pop(name, None) is not None

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        await self._begin()
        rows = self._tables.schedules
        if (known := rows.get(name)) is None:
            return False
        rows[name] = known.paused_or_not(paused, self._tables.now())
        self._ring(Bell.SCHEDULE)
        return True

    async def trigger(self, name: str) -> TaskRef | None:
        await self._begin()
        rows = self._tables.schedules
        if (known := rows.get(name)) is None:
            return None
        ref = self._store_tick(known, None)
        rows[name] = attrs.evolve(known, last_task_id=ref.id, earlier=self._unfinished(known))
        self._ring(Bell.WORK)
        return ref

    async def backfill(
        self, name: str, ticks: Sequence[dt.datetime], *, dry_run: bool
    ) -> int | None:
        await self._begin()
        tables = self._tables
        if (known := tables.schedules.get(name)) is None:
            return None
        fresh = [tick for tick in ticks if (name, tick) not in tables.ticks]
        if not dry_run:
            for tick in fresh:
                self._note(name, tick)
                self._store_tick(known, Tick(tick))
                known = known.ticked(tick, None)
            tables.schedules[name] = known
            self._ring(Bell.WORK)
        return len(fresh)

    async def now(self) -> dt.datetime:
        await self._begin()
        return self._tables.now()

    # -- for the worker ----------------------------------------------------------

    async def declare_schedules(
        self, worker: WorkerInfo, schedules: Sequence[NewSchedule]
    ) -> list[Problem]:
        await self._begin()
        rows, now = self._tables.schedules, self._tables.now()
        for new in schedules:
            self._declare(worker, new, now)
        mixed = any(
            list(other.info.schedules) != list(worker.schedules)
            for other in self._tables.workers.values()
            if other.info.app == worker.app and other.info.id != worker.id and other.alive(now)
        )
        for name, row in rows.items():
            if row.app == worker.app:
                mine = name in worker.schedules
                rows[name] = attrs.evolve(
                    row, dropped=mixed or not mine, orphaned=row.orphaned and not mine
                )
            elif row.app is None and row.error is not None and row.task_type in worker.task_types:
                rows[name] = attrs.evolve(row, look_at=now)
        self._ring(Bell.SCHEDULE)
        return [
            Problem(name=name, error=f"the App {rows[name].app!r} has a schedule of this name")
            for name in worker.schedules
            if name in rows and rows[name].app not in (None, worker.app)
        ]

    def _declare(self, worker: WorkerInfo, new: NewSchedule, now: dt.datetime) -> None:
        rows = self._tables.schedules
        if (known := rows.get(new.name)) is None:
            rows[new.name] = Schedule(
                asked=new,
                app=worker.app,
                since=now,
                look_at=now,
                paused=new.paused or False,
                declared=new,
            )
        elif (known.app in (None, worker.app) and known.declared != new) or (
            known.orphaned and known.app != worker.app
        ):
            same = known.declared is not None and known.declared.paused == new.paused
            asked = attrs.evolve(new, paused=None) if same else new
            rows[new.name] = known.changed(asked, now, app=worker.app, declared=new)

    async def fire_schedules(self, worker: WorkerInfo, *, most: int, ticks: int = 1000) -> Fired:
        await self._begin()
        rows, now = self._tables.schedules, self._tables.now()
        if worker.id not in self._tables.workers:
            return Fired()
        for name, row in rows.items():  # the clock has been set back
            if row.since > now + dt.timedelta(seconds=1) and not row.paused and not row.orphaned:
                rows[name] = attrs.evolve(row, since=now, look_at=now)
        known = self._known_types(now)
        due = [
            row
            for row in rows.values()
            if not row.paused
            and not row.orphaned
            and row.look_at <= now
            and row.is_for(worker, known)
        ]
        taken = list[DueSchedule]()
        for row in sorted(due, key=lambda row: row.look_at)[:most]:
            if row.app is not None and not self._is_declared(row):
                rows[row.asked.name] = attrs.evolve(row, orphaned=True)
            else:
                taken.append(self._due(row, now, known))
        tasks, problems = 0, list[Problem]()
        for each, firing in zip(taken, decide_some(taken, ticks), strict=False):
            tasks += self._fire(rows[each.name], firing)
            if firing.error is not None and firing.error != each.error:
                problems.append(Problem(name=each.name, error=firing.error))
        if tasks:
            self._ring(Bell.WORK)
        later = [
            row.look_at
            for row in rows.values()
            if not row.paused and not row.orphaned and row.look_at > now
        ]
        return Fired(
            tasks=tasks,
            next_in=(min(later) - now).total_seconds() if later else None,
            more=any(
                not row.paused
                and not row.orphaned
                and row.look_at <= now
                and row.is_for(worker, known)
                for row in rows.values()
            ),
            problems=tuple(problems),
        )

    async def forget_ticks(self) -> int:
        await self._begin()
        now, ticks = self._tables.now(), self._tables.ticks
        old = [key for key, expires_at in ticks.items() if expires_at <= now]
        for key in old:
            del ticks[key]
        return len(old)

    # -- helpers -----------------------------------------------------------------

    def _known_types(self, now: dt.datetime) -> set[str]:
        workers = self._tables.workers.values()
        return {name for each in workers if each.alive(now) for name in each.info.task_types}

    def _due(self, row: Schedule, now: dt.datetime, known: set[str]) -> DueSchedule:
        return row.due(
            now,
            since=self._since(row, now),
            busy=bool(self._unfinished(row)),
            known=row.app is not None or row.task_type in known,
        )

    def _unfinished(self, row: Schedule) -> tuple[int, ...]:
        """Return the tasks before the next one that have not ended."""
        places = self._tables.places
        return tuple(
            task_id
            for task_id in row.before
            if (place := places.get(task_id)) is not None and not place.state.is_final
        )

    def _fire(self, row: Schedule, firing: Firing) -> int:
        tables, name, before = self._tables, row.asked.name, self._unfinished(row)
        fresh = [tick for tick in firing.ticks if (name, tick.at) not in tables.ticks]
        row = row.moved_on(firing)
        for tick in fresh:
            self._note(name, tick.at)
            row = row.ticked(tick.at, self._store_tick(row, tick).id)
        tables.schedules[name] = row
        if firing.cancels and fresh:
            for task_id in before:
                tables.cancel(task_id, running=True)
            self._ring_all()
        return len(fresh)

    def _since(self, row: Schedule, now: dt.datetime) -> dt.datetime | None:
        """Return since when a worker has been there that can fire *row*."""
        return min(
            (
                each.started_at
                for each in self._tables.workers.values()
                if each.alive(now)
                and (
                    each.info.app == row.app
                    if row.app is not None
                    else row.task_type in each.info.task_types
                )
            ),
            default=None,
        )

    def _is_declared(self, row: Schedule) -> bool:
        """Whether it is not known that no code declares it any more."""
        now = self._tables.now()
        return not row.dropped or any(
            each.alive(now) and each.info.app == row.app and row.asked.name in each.info.schedules
            for each in self._tables.workers.values()
        )

    def _note(self, name: str, tick: dt.datetime) -> None:
        self._tables.ticks[name, tick] = max(tick, self._tables.now()) + REMEMBERED

    def _store_tick(self, row: Schedule, tick: Tick | None) -> TaskRef:
        now, asked = self._tables.now(), row.asked.task
        base = now if tick is None or tick.run_at is None else tick.run_at
        run_at = base + dt.timedelta(seconds=asked.run_after)
        asked = attrs.evolve(asked, run_at=run_at)
        return self._tables.insert(asked, tick=None if tick is None else tick.at)
