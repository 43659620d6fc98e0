"""How an application declares its queues."""

from __future__ import annotations

import inspect
import types

from collections.abc import Mapping
from types import EllipsisType

from nursery_queue._core._checks import label
from nursery_queue._core._queue_changes import QueueChanges, checked
from nursery_queue._core._rate import Rate


class QueueDeclarations:
    """The part of an `App` that is about queues."""

    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[str, QueueChanges] = {}
        self._declared_at: dict[str, str] = {}

    @property
    def queues(self) -> Mapping[str, QueueChanges]:
        """What is declared of queues, by name: a read-only view that shows later ones, too."""
        return types.MappingProxyType(self._queues)

    def queue(
        self,
        name: str,
        *,
        max_running: int | EllipsisType | None = ...,
        max_running_per_key: int | EllipsisType | None = ...,
        rate: Rate | EllipsisType | None = ...,
        rate_per_key: Rate | EllipsisType | None = ...,
        notify: bool | EllipsisType = ...,
    ) -> None:
        """Declare how a queue is worked on, over all workers.

        Each worker of this app stores it when it starts, before its first claim. What is set at run
        time, by `Client.configure_queue`, the command line or plain SQL, holds until the
        declaration changes: then the queue is set as declared. Of two versions of the code the
        one whose worker started last counts.

        What is left out is not declared, and stays as it is. What was declared once, and is left
        out now, becomes as if it had never been set. A queue that is no longer declared at all
        stays as it is: ``app.queue(name)`` alone takes back all that was declared of it.

        Args:
            name: The name of the queue.
            max_running: See `Client.configure_queue`, and so for the others.
            max_running_per_key: The same for its tasks with one key.
            rate: At most so many of its tasks start in so much time.
            rate_per_key: The same for its tasks with one key.
            notify: Whether an enqueue to this queue wakes the workers.

        Raises:
            ValueError: *name* is no name, or is declared already, or a limit is negative.
            TypeError: A limit is no whole number, a rate no `Rate`, or *notify* no bool.
        """
        name = label(name, "queue")
        declared = checked(
            max_running=max_running,
            max_running_per_key=max_running_per_key,
            rate=rate,
            rate_per_key=rate_per_key,
            notify=notify,
        )
        if name in self._queues:
            msg = f"the queue {name!r} is declared twice, {self._declared_at[name]} and {_caller()}"
            raise ValueError(f"{msg}: say all of it in one place")
        self._queues[name], self._declared_at[name] = declared, _caller()


def _caller() -> str:
    """Say where the queue is being declared."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame and frame.f_back
    return "somewhere" if frame is None else f"in {frame.f_code.co_filename}:{frame.f_lineno}"
