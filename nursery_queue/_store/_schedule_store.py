"""The verbs of a store that are about schedules."""

from __future__ import annotations

import datetime as dt

from collections.abc import Sequence
from typing import Protocol

from nursery_queue._core._model import TaskRef, WorkerInfo
from nursery_queue._core._schedules import Fired, NewSchedule, Problem, ScheduleStatus


class ClientScheduleStore(Protocol):
    """The part of `ClientStore`."""

    async def schedules(self, name: str | None = None) -> list[ScheduleStatus]:
        """Return every schedule, by name, or the one called *name*."""
        ...

    async def set_schedule(self, schedule: NewSchedule) -> None:
        """Store a schedule. Of one that there is, its App and what it has done stay.

        Ticks count from now on if they are others than before.
        """
        ...

    async def delete_schedule(self, name: str) -> bool:
        """Delete a schedule. The tasks that it has made stay. False: there is none."""
        ...

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Pause a schedule, so that it does not fire, or end that. False: there is none."""
        ...

    async def trigger(self, name: str) -> TaskRef | None:
        """Store a task of a schedule, that stands for no tick. None: there is no such schedule."""
        ...

    async def backfill(
        self, name: str, ticks: Sequence[dt.datetime], *, dry_run: bool
    ) -> int | None:
        """Store tasks for those of *ticks* that have had none; return how many.

        *dry_run*: only count them. None: there is no such schedule.
        """
        ...

    async def now(self) -> dt.datetime:
        """Return the store's clock."""
        ...


class WorkerScheduleStore(Protocol):
    """The part of `WorkerStore`."""

    async def declare_schedules(
        self, worker: WorkerInfo, schedules: Sequence[NewSchedule]
    ) -> list[Problem]:
        """Store the schedules that a worker's code declares; return those that were not.

        Of `worker.schedules`, the names of them all, *schedules* are the ones to be stored: where
        the declaration is another than the stored one, it counts. The schedules of its App that
        it does not declare are orphaned, unless another living worker does. What an open
        transaction is changing is left as it is, and said to be held: call again for that.
        """
        ...

    async def fire_schedules(self, worker: WorkerInfo, *, most: int, ticks: int = 1000) -> Fired:
        """Store the tasks of schedules that are due, and move these on, *most* of them.

        About so many *ticks* in one transaction; schedules that have more are due again at once.
        Those of the worker's App, and of those of none the ones whose task type it knows. Each
        tick has one task, however many workers do this. A schedule that cannot fire keeps no
        other from it, and is tried again a minute later; one whose tick needs what an open
        transaction holds, half a second later.
        """
        ...

    async def forget_ticks(self) -> int:
        """Forget a batch of ticks that had their task more than 30 days ago; return how many."""
        ...
