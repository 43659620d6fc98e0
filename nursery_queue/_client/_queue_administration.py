"""Administration of queues, workers and many tasks at once; single steps of maintenance."""

from __future__ import annotations

import datetime as dt

from types import EllipsisType
from typing import Any

import attrs

from nursery_queue._core._checks import instant, label
from nursery_queue._core._errors import Closed
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import QueueStatus, WorkerStatus
from nursery_queue._core._queue_changes import QueueChanges, checked
from nursery_queue._core._rate import Rate
from nursery_queue._declare._task_type import TaskType
from nursery_queue._store import Store


CLOSED = "this client has been closed: open another one with nursery_queue.connect()"
BELOW_ALL = -(2**63)  # ids need not be positive: plain SQL may give any


@attrs.define(eq=False)
class QueueAdministration:
    """The part of a client that is about more than one task."""

    store: Store
    _closed: bool = attrs.field(default=False, init=False)

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
        store = self._open_store
        which = CancelFilter(
            queue=None if queue is None else label(queue, "queue"),
            task_type=None if task_type is None else label(name_of(task_type), "task_type"),
            before=None if before is None else instant(before, "before"),
        )
        if everything == (which != CancelFilter()):
            raise ValueError(
                "cancel_all of everything must be asked for: give a queue, a task_type or an"
                " instant (before), or else everything=True alone"
            )
        newest = await store.list_tasks(TaskFilter(limit=1))
        last, total = (BELOW_ALL, 0) if newest else (None, 0)
        while last is not None:
            last, count = await store.cancel_some(
                which, after=last, upto=newest[0].id, dry_run=dry_run
            )
            total += count
        return total

    async def queues(self) -> list[QueueStatus]:
        """Return every queue that has live tasks or has ever been configured or paused, by name."""
        return await self._open_store.queues()

    async def pause(self, queue: str) -> None:
        """Start no more tasks of a queue, on any worker, from now until `resume`.

        Running tasks go on, and their outcomes are stored. A task that a worker has claimed ahead
        and not started it gives back when it hears of the pause: at once, or at its next poll if
        it only polls. Until then it may start some of that. Twice is as good as once.
        Raises `ValueError` if *queue* is no name.
        """
        await self._open_store.configure(label(queue, "queue"), paused=True)

    async def resume(self, queue: str) -> None:
        """Start tasks of a paused queue again, at once. Keeps its limits and rates."""
        await self._open_store.configure(label(queue, "queue"), paused=False)

    async def configure_queue(
        self,
        queue: str,
        *,
        paused: bool | EllipsisType = ...,
        max_running: int | EllipsisType | None = ...,
        max_running_per_key: int | EllipsisType | None = ...,
        rate: Rate | EllipsisType | None = ...,
        rate_per_key: Rate | EllipsisType | None = ...,
        notify: bool | EllipsisType = ...,
    ) -> None:
        """Set how a queue is worked on, over all workers. What is left out stays as it is.

        All of it is set at once, or nothing: cancelled or failed, it has changed nothing.

        Args:
            queue: Its name.
            paused: Whether nothing of it starts, as after `pause` and `resume`.
            max_running: At most so many of its tasks run at a time, exact at every moment. 0 is
                a pause; None: as many as the workers can. A lower limit stops nothing that
                runs, a higher one starts tasks at once. What was claimed ahead of a queue that
                has too many is given back, as after `pause`.
            max_running_per_key: The same for its tasks with one key. A task without a key is not
                limited by it.
            rate: At most so many of its tasks start in so much time; None: any number. A retry
                is a start, too. A raised rate counts at once.
            rate_per_key: The same for its tasks with one key. A task without a key is not limited
                by it.
            notify: Whether an enqueue to this queue wakes the workers, by NOTIFY. False spares
                its commits that, and leaves its tasks to be found at the next poll
                (`poll_interval` of the worker, 5 s). At first true.

        Raises:
            ValueError: *queue* is no name, or a limit is negative.
            TypeError: A limit is no whole number, a rate no `Rate`, a switch no bool, or nothing
                is given but the name.
        """
        store, name = self._open_store, label(queue, "queue")
        changes = checked(
            paused=paused,
            max_running=max_running,
            max_running_per_key=max_running_per_key,
            rate=rate,
            rate_per_key=rate_per_key,
            notify=notify,
        )
        if not changes:
            names = ", ".join(QueueChanges.__annotations__)
            raise TypeError(f"what is to be set for the queue {name!r}? Give one of {names}")
        await store.configure(name, **changes)

    async def workers(self) -> list[WorkerStatus]:
        """Return every registered worker, the oldest first, and what is known of it."""
        return await self._open_store.workers()

    async def promote(self) -> int:
        """Make scheduled tasks that are due ready, and return how many; workers do so too."""
        return await self._open_store.promote()

    async def prune(self) -> int:
        """Delete tasks that ended longer ago than they are kept, and return how many.

        One batch of at most 1,000; workers do so too.
        """
        return await self._open_store.prune()

    @property
    def _open_store(self) -> Store:
        self._check_open()
        return self.store

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(CLOSED)


def name_of(task_type: object) -> object:
    """Return the name of a task type that may be given by name."""
    return task_type.name if isinstance(task_type, TaskType) else task_type
