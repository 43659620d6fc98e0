"""The events that instruments hear of."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import attrs

from ._counters import Counters
from ._model import Held, NewTask, Outcome, Settlement, TaskRef
from ._states import State


@attrs.frozen(kw_only=True)
class Enqueued:
    """A task has been stored by this client, and committed. A worker may have started it before.

    `created` False: there was a live one with its dedup key, and `task_id` is that one's.
    """

    task_id: int
    task_type: str
    queue: str | None  # None: as is declared, which only the store knows
    created: bool


@attrs.frozen(kw_only=True)
class Started:
    """An attempt has started: its handler is about to be called.

    There is one for each attempt that the log of attempts has, and a `Completed` after it. A task
    that is given back before its handler could be called, for want of a thread or of the database,
    has not started.

    `lag`: seconds since the task was due: until its claim by the database's clock, and from then
    on by trio's. A task that a worker has given back, or lost, was due when that happened.
    """

    task_id: int
    task_type: str
    queue: str
    attempt: int  # as in `TaskContext`
    worker_id: UUID
    lag: float


@attrs.frozen(kw_only=True)
class Completed:
    """An attempt has ended, and its outcome is stored.

    `took`: seconds that the handler ran, by trio's clock; of an attempt that was lost, until
    that was noted, by the database's.
    """

    task_id: int
    task_type: str
    queue: str
    status: Outcome  # what the log of attempts says
    state: State  # where the task went; `state.is_final`: it has ended
    attempt: int
    worker_id: UUID
    took: float
    error: str | None  # its type and message; None: there was none


@attrs.frozen(kw_only=True)
class Report:
    """The outcomes a worker has stored since its last report, or since it began.

    `counters.running` are its handlers now. `counters.backlog` are due tasks of its queues and
    types, of the first 10,000 that are due in these queues; if the database does not answer,
    as last known.
    """

    worker_id: UUID
    worker: str  # its name
    seconds: float  # that it is about
    counters: Counters
    last: bool  # the worker has ended


Happening = Enqueued | Started | Completed | Report


def enqueued(tasks: Sequence[NewTask], refs: Sequence[TaskRef]) -> list[Enqueued]:
    """Return the events for tasks that have been stored."""
    return [
        Enqueued(task_id=ref.id, task_type=task.task_type, queue=task.queue, created=ref.created)
        for task, ref in zip(tasks, refs, strict=True)
    ]


def lost(held: Held, settlement: Settlement) -> Completed:
    """Return the event for an attempt that a sweep has settled."""
    return Completed(
        task_id=held.fence.task_id,
        task_type=held.task_type,
        queue=held.queue,
        status=Outcome.LOST,
        state=settlement.state,
        attempt=held.attempt,
        worker_id=held.worker_id,
        took=held.age,
        error=error_of(settlement),
    )


def error_of(settlement: Settlement) -> str | None:
    """Return the error of an attempt as one line."""
    error = settlement.error
    return None if error is None else f"{error.type}: {error.message}"
