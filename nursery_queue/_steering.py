"""What operators ask and steer: queues, workers, and many tasks at once."""

from __future__ import annotations

import datetime as dt

from typing import Any

import attrs

from ._core._checks import instant, label, whole
from ._core._filters import CancelFilter, TaskFilter
from ._core._model import QueueStatus, WorkerStatus
from ._store import Store
from ._task_type import TaskType


BELOW_ALL = -(2**63)  # ids need not be positive: plain SQL may give any


@attrs.define(eq=False)
class Steering:
    """The part of a client that is about more than one task."""

    store: Store

    async def cancel_all(
        self,
        queue: str | None = None,
        task_type: TaskType[..., Any] | str | None = None,
        before: dt.datetime | None = None,
        *,
        everything: bool = False,
        dry_run: bool = False,
    ) -> int:
        """Cancel every task that fits and has not ended, as `cancel` does; return how many.

        What is enqueued after the call is not touched. Goes through all tasks by id, in many
        short transactions: if it is cancelled or fails, those it has come to stay cancelled,
        and it can be called again. Running tasks are counted each time.

        Args:
            queue: Only tasks of this queue.
            task_type: Only of this type.
            before: Only those created earlier.
            everything: To be given instead of these, if all tasks are meant.
            dry_run: Count them and do nothing.

        Raises:
            ValueError: Nothing says which tasks are meant, or *before* has no time zone.
        """
        self._check_open()
        which = CancelFilter(
            queue=None if queue is None else label(queue, "queue"),
            task_type=None if task_type is None else label(name_of(task_type), "task_type"),
            before=None if before is None else instant(before, "before"),
        )
        if everything == (which != CancelFilter()):
            msg = (
                "cancel_all of everything must be asked for: give a queue, a task_type or an"
                " instant (before), or else everything=True alone"
            )
            raise ValueError(msg)
        newest = await self.store.list_tasks(TaskFilter(limit=1))
        last, total = (BELOW_ALL, 0) if newest else (None, 0)
        while last is not None:
            last, count = await self.store.cancel_some(
                which, after=last, upto=newest[0].id, dry_run=dry_run
            )
            total += count
        return total

    async def queues(self) -> list[QueueStatus]:
        """Return every queue that has live tasks, is paused or has a limit, by name."""
        self._check_open()
        return await self.store.queues()

    async def pause(self, queue: str) -> None:
        """Start no more tasks of a queue, on any worker, from now until `resume`.

        What runs is not touched, and its outcomes are stored. What a worker has claimed ahead
        and not started it gives back when it hears of the pause: at once, or at its next poll if
        it only polls. Until then it may start some of that. Twice is as good as once.
        Raises `ValueError` if *queue* is no name.
        """
        self._check_open()
        await self.store.pause(label(queue, "queue"), paused=True)

    async def resume(self, queue: str) -> None:
        """Start tasks of a paused queue again, at once. Keeps its `max_running`."""
        self._check_open()
        await self.store.pause(label(queue, "queue"), paused=False)

    async def configure_queue(self, queue: str, *, max_running: int | None) -> None:
        """Let at most *max_running* tasks of a queue run at a time, over all workers.

        Exact at every moment. 0 is a pause; None: as many as the workers can. A lower limit
        stops nothing that runs, a higher one starts tasks at once. What was claimed ahead of a
        queue that has too many is given back, as after `pause`.

        Raises:
            ValueError: *queue* is no name, or *max_running* is negative.
            TypeError: *max_running* is no whole number.
        """
        self._check_open()
        limit = None if max_running is None else whole(max_running, "max_running", minimum=0)
        await self.store.limit(label(queue, "queue"), limit)

    async def workers(self) -> list[WorkerStatus]:
        """Return every registered worker, the oldest first, and what is known of it."""
        self._check_open()
        return await self.store.workers()

    def _check_open(self) -> None:
        raise NotImplementedError


def name_of(task_type: object) -> object:
    """Return the name of a task type that may be given by name."""
    return task_type.name if isinstance(task_type, TaskType) else task_type
