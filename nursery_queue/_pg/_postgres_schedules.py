"""The verbs of `PostgresStore` for schedules."""

from __future__ import annotations

import datetime as dt
import json
import logging

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import psycopg
import trio

from psycopg import errors

from nursery_queue._core._error_text import one_line, refusal_of
from nursery_queue._core._errors import DatabaseRefused
from nursery_queue._core._firing import HOLD, DueSchedule, Firing, decide_some
from nursery_queue._core._model import TaskRef, WorkerInfo
from nursery_queue._core._schedules import Fired, NewSchedule, Problem, ScheduleStatus
from nursery_queue._psycopg._connection import Connection

from ._rows import Row
from ._schedule_rows import due_schedule, firings_param, schedule_status
from ._sessions import Sessions
from ._sql import query


log = logging.getLogger("nursery_queue")

TICKS = 10_000  # to forget in one statement
BUSY = "an open transaction is changing it"
HELD_UP = 0.5  # seconds until what an open transaction has held up is tried again


class _NotFiredError(Exception):
    """A schedule, or one of several, could not fire."""

    def __init__(self, why: str | None) -> None:
        super().__init__(why)
        self.why = why  # None: an open transaction holds what it needs


@attrs.define(eq=False)
class ScheduleVerbs(Sessions):
    """Schedules in PostgreSQL."""

    # -- for the client ----------------------------------------------------------

    async def schedules(self, name: str | None = None) -> list[ScheduleStatus]:
        return [schedule_status(row) for row in await self._read("schedules", {"name": name})]

    async def set_schedule(self, schedule: NewSchedule) -> None:
        await self._change("set_schedule", schedule.columns())

    async def delete_schedule(self, name: str) -> bool:
        return bool(await self._change("delete_schedule", {"name": name}))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        return bool(await self._change("pause_schedule", {"name": name, "paused": paused}))

    async def trigger(self, name: str) -> TaskRef | None:
        ((task_id,),) = await self._change("trigger_schedule", {"name": name})
        return None if task_id is None else TaskRef(task_id)

    async def backfill(
        self, name: str, ticks: Sequence[dt.datetime], *, dry_run: bool
    ) -> int | None:
        ((stored,),) = await self._run(
            self._for_statements,
            "backfill",
            {"name": name, "ticks": list(ticks), "dry_run": dry_run},
            writes=not dry_run,
        )
        return None if stored is None else int(stored)

    async def now(self) -> dt.datetime:
        ((now,),) = await self._run(self._for_statements, "clock")
        found: dt.datetime = now
        return found.astimezone(dt.UTC)

    async def _change(self, statement: str, params: Mapping[str, Any]) -> list[Row]:
        return await self._run(self._for_statements, statement, params, writes=True)

    # -- for the worker ----------------------------------------------------------

    async def declare_schedules(
        self, worker: WorkerInfo, schedules: Sequence[NewSchedule]
    ) -> list[Problem]:
        params = {
            "worker_id": worker.id,
            "app": worker.app,
            "names": list(worker.schedules),
            "task_types": list(worker.task_types),
            "declared": json.dumps([each.columns() for each in schedules]),
        }
        rows = await self._run(self._control, "declare_schedules", params)
        return [
            Problem(name=name, error=problem or BUSY, held=problem is None)
            for name, problem in rows
        ]

    async def fire_schedules(self, worker: WorkerInfo, *, most: int, ticks: int = 1000) -> Fired:
        due, next_in = await self._next(worker)
        if not due:
            return Fired(next_in=next_in)
        try:
            tried, tasks, problems = await self._fire(worker, most, ticks)
        except _NotFiredError:
            # One by one: one may be at fault, and the others are not to wait for it.
            tried, tasks, problems = await self._fire_each(worker, most, ticks)
        more, next_in = await self._next(worker)
        return Fired(
            tasks=tasks, next_in=next_in, more=more, contended=not tried, problems=tuple(problems)
        )

    async def forget_ticks(self) -> int:
        ((forgotten,),) = await self._run(self._control, "forget_ticks", {"limit": TICKS})
        return int(forgotten)

    async def _next(self, worker: WorkerInfo) -> tuple[bool, float | None]:
        params = {"app": worker.app, "task_types": list(worker.task_types)}
        ((due, next_in),) = await self._run(self._control, "next_schedule", params)
        return due, next_in

    async def _take(
        self, conn: Connection, worker: WorkerInfo, most: int, name: str | None = None
    ) -> list[DueSchedule]:
        """Lock schedules that are due, and put aside those that no code declares any more."""
        params = {
            "worker_id": worker.id,
            "app": worker.app,
            "task_types": list(worker.task_types),
            "most": most,
            "name": name,
        }
        rows = await conn.fetch_named(query("take_schedules", self.schema), params)
        orphans = [row["name"] for row in rows if not row["declared"]]
        if orphans:
            await conn.fetch(query("orphan_schedules", self.schema), {"names": orphans})
        return [due_schedule(row) for row in rows if row["declared"]]

    async def _fire(
        self, worker: WorkerInfo, most: int, ticks: int, name: str | None = None
    ) -> tuple[int, int, list[Problem]]:
        """Fire what is due in one transaction; return how many schedules, tasks, and what is wrong.

        Raises `_NotFiredError` if one of them is refused or held up.
        """
        try:
            async with self._lent(self._control) as conn:
                try:
                    async with conn.transaction():
                        taken = await self._take(conn, worker, most, name)
                        tasks, problems = await self._store(conn, taken, ticks)
                except errors.LockNotAvailable as exc:
                    raise _NotFiredError(None) from exc
        # What passes with time otherwise has become a TransientError by now.
        except (psycopg.Error, DatabaseRefused) as exc:
            raise _NotFiredError(one_line(f"{type(exc).__name__}: {refusal_of(exc)}")) from exc
        return len(taken), tasks, problems

    async def _store(
        self, conn: Connection, taken: Sequence[DueSchedule], ticks: int
    ) -> tuple[int, list[Problem]]:
        firings, problems = list[Firing](), list[Problem]()
        for due, firing in zip(taken, decide_some(taken, ticks), strict=False):
            firings.append(firing)
            if firing.error is not None and firing.error != due.error:  # else it is known
                problems.append(Problem(name=firing.name, error=firing.error))
            await trio.lowlevel.checkpoint()  # to count a thousand ticks takes a while
        if not firings:
            return 0, []
        params = {"firings": firings_param(firings)}
        ((tasks,),) = await conn.fetch(query("fire", self.schema), params)
        return int(tasks), problems

    async def _fire_each(
        self, worker: WorkerInfo, most: int, ticks: int
    ) -> tuple[int, int, list[Problem]]:
        params = {"app": worker.app, "task_types": list(worker.task_types), "most": most}
        names = [name for (name,) in await self._run(self._control, "due_schedules", params)]
        tasks, problems = 0, list[Problem]()
        for name in names:
            try:
                _, stored, found = await self._fire(worker, 1, max(ticks // len(names), 1), name)
            except _NotFiredError as exc:
                stored, found = 0, await self._hold(name, exc.why)
            tasks, problems = tasks + stored, problems + found
        return len(names), tasks, problems

    async def _hold(self, name: str, why: str | None) -> list[Problem]:
        """Leave the ticks of a schedule for later."""
        seconds = HELD_UP if why is None else HOLD.total_seconds()
        params = {"name": name, "error": why, "seconds": seconds}
        held = await self._run(self._control, "hold_schedule", params)
        return [Problem(name=name, error=why) for (new,) in held if new and why is not None]
