"""Administration of schedules: asked about, changed at run time, fired by hand, backfilled."""

from __future__ import annotations

import datetime as dt

from collections.abc import Callable, Sequence
from typing import NoReturn

import attrs
import trio

from nursery_queue._core._checks import instant, label
from nursery_queue._core._errors import UnknownSchedule
from nursery_queue._core._model import TaskRef
from nursery_queue._core._schedules import (
    MOST_BACKFILLED,
    REMEMBERED,
    Misfire,
    Overlap,
    ScheduleStatus,
)
from nursery_queue._core._when import FIRST, LAST, Cron, Every
from nursery_queue._declare._app_schedules import ScheduledTask, as_new_schedule
from nursery_queue._declare._options import Seconds
from nursery_queue._declare._task_type import MAX_PARAMS_BYTES

from ._queue_administration import QueueAdministration


BATCH = 500  # ticks in one transaction
COUNTED = 100_000  # ticks, to say how many are too many


@attrs.define(eq=False)
class ScheduleAdministration(QueueAdministration):
    """The part of a client that is about schedules."""

    max_params_bytes: int = attrs.field(default=MAX_PARAMS_BYTES, kw_only=True)

    async def schedules(self) -> list[ScheduleStatus]:
        """Return every schedule in the database, by name."""
        return await self._open_store.schedules()

    async def schedule(self, name: str) -> ScheduleStatus | None:
        """Return how a schedule stands; None: there is none of that name."""
        found = await self._open_store.schedules(label(name, "name"))
        return found[0] if found else None

    async def set_schedule(
        self,
        name: str,
        when: Cron | Every,
        task: ScheduledTask,
        *,
        misfire: Misfire = "latest",
        overlap: Overlap = "allow",
        jitter: Seconds = 0.0,
        paused: bool | None = None,
    ) -> None:
        """Store a schedule at run time, from any program, or put this in the place of one.

        One that is new has no App: any worker fires it that knows its task type, and it stays until
        it is deleted. One that code declares stays its App's, and this counts until the code says
        something else. If *when* is as it was, the next tick is, too. For the arguments see
        `App.schedule`.

        Args:
            name: Its name.
            when: A `Cron` or an `Every`.
            task: A task type that needs no arguments, what `bind()` returned, or the name of a
                task type; its queue and priority, where no option says, are as declared at each
                tick.
            misfire: What becomes of ticks that passed meanwhile.
            overlap: What a tick does while the task before has not ended.
            jitter: Seconds.
            paused: None: as it is; of a new one, no.

        Raises:
            ValueError, TypeError: As by `App.schedule`.
        """
        store = self._open_store
        schedule = as_new_schedule(
            name,
            when,
            task,
            max_params_bytes=self.max_params_bytes,
            misfire=misfire,
            overlap=overlap,
            jitter=jitter,
            paused=paused,
        )
        await store.set_schedule(schedule)

    async def delete_schedule(self, name: str) -> bool:
        """Delete a schedule; its tasks stay. False: there is none of that name.

        One that code declares is stored anew when the next worker of its App starts: pause it, or
        take it out of the code.
        """
        return await self._open_store.delete_schedule(label(name, "name"))

    async def pause_schedule(self, name: str) -> bool:
        """Fire no more ticks of a schedule until `resume_schedule`. False: there is none.

        Its tasks that are there go on. It stays paused when workers start.
        """
        return await self._open_store.pause_schedule(label(name, "name"), paused=True)

    async def resume_schedule(self, name: str) -> bool:
        """Fire a paused schedule again, and do with what passed as its `misfire` says.

        False: there is none of that name.
        """
        return await self._open_store.pause_schedule(label(name, "name"), paused=False)

    async def trigger(self, name: str) -> TaskRef:
        """Enqueue the task of a schedule now, also if it is paused.

        It stands for no tick, so `ctx.tick` is None, and the next tick comes as ever.

        Raises:
            UnknownSchedule: There is none of that name.
        """
        ref = await self._open_store.trigger(label(name, "name"))
        if ref is None:
            _unknown(name)
        return ref

    async def backfill(
        self,
        name: str,
        since: dt.datetime,
        until: dt.datetime,
        dry_run: bool = False,
        *,
        repeat: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Enqueue tasks, due now, for the ticks of ``[since, until)`` that have had none.

        Whatever `overlap` and `paused` say. A tick that has had its task gets no other one, also if
        that has been pruned, and one that is to come has none when it comes. In transactions of 500
        ticks: if it is cancelled or fails, those it has come to have their tasks, and it can be
        called again.

        Args:
            name: The schedule's name.
            since: The first instant that counts; before the year 2 there are no ticks.
            until: The first that does not; nor are there any behind the year 9998.
            dry_run: Only count them.
            repeat: Ticks are remembered for 30 days. Go further back all the same, and run again
                what is remembered no more.
            progress: Called after each transaction, with how many ticks are done, and of how many.

        Returns:
            How many tasks were stored, or would be.

        Raises:
            UnknownSchedule: There is none of that name.
            ValueError: There are more than 10,000 ticks, or *since* is before what is remembered;
                an instant has no time zone, or the schedule cannot be read.
        """
        store, name = self._open_store, label(name, "name")
        bounds = instant(since, "since"), instant(until, "until")
        status = await self.schedule(name)
        if status is None:
            _unknown(name)
        ticks = await _ticks(status, *bounds)
        if ticks and not repeat:
            _check_remembered(name, ticks[0], await store.now())
        stored = 0
        for start in range(0, len(ticks), BATCH):
            some = ticks[start : start + BATCH]
            count = await store.backfill(name, some, dry_run=dry_run)
            if count is None:
                _unknown(name)
            stored += count
            if progress is not None:
                progress(start + len(some), len(ticks))
        return stored


async def _ticks(
    status: ScheduleStatus, since: dt.datetime, until: dt.datetime
) -> Sequence[dt.datetime]:
    """Return the ticks of a schedule, or raise `ValueError` if there are too many."""
    if status.when is None:
        raise ValueError(f"the ticks of schedule {status.name!r} cannot be read: {status.error}")
    ticks: list[dt.datetime] = []
    since, until = max(since, FIRST), min(until, LAST)
    for tick in status.when.ticks(since - dt.timedelta(microseconds=1)):
        if tick >= until or len(ticks) > COUNTED:
            break
        ticks.append(tick)
        if len(ticks) % 1000 == 0:
            await trio.lowlevel.checkpoint()
    if len(ticks) > MOST_BACKFILLED:
        number = f"more than {COUNTED:,}" if len(ticks) > COUNTED else f"{len(ticks):,}"
        raise ValueError(
            f"schedule {status.name!r} has {number} ticks from {since} to {until}, and a backfill "
            f"at most {MOST_BACKFILLED:,}: do it in parts"
        )
    return ticks


def _check_remembered(name: str, first: dt.datetime, now: dt.datetime) -> None:
    if first <= now - REMEMBERED:
        raise ValueError(
            f"a backfill of schedule {name!r} from {first} on reaches back further than the "
            f"{REMEMBERED.days} days for which ticks are remembered: what ran before may run again;"
            f" give repeat=True, or --repeat, if it may"
        )


def _unknown(name: str) -> NoReturn:
    raise UnknownSchedule(
        f"there is no schedule {name!r}: client.schedules() and `nursery-queue schedules list`"
        " tell which there are"
    )
