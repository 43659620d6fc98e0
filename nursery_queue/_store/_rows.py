"""The rows of `MemoryStore`."""

from __future__ import annotations

import datetime as dt
import json

from collections import defaultdict
from collections.abc import Iterable, Sequence
from uuid import UUID

import attrs

from nursery_queue._core._json import find_fault, object_from_text
from nursery_queue._core._model import Attempt, Lane, NewTask, Outcome, Settlement, WorkerInfo
from nursery_queue._core._states import State, transition


@attrs.frozen(kw_only=True)
class Task:
    """What was asked; never changes."""

    id: int
    asked: NewTask
    created_at: dt.datetime
    run_at: dt.datetime


@attrs.frozen(kw_only=True)
class Place:
    """Where a task is. Each state uses the fields it needs."""

    state: State
    attempt: int = 0
    epoch: int = 0
    lost: int = 0
    due_at: dt.datetime | None = None
    worker_id: UUID | None = None
    started_at: dt.datetime | None = None
    cancel_requested: bool = False
    cancel_interrupts: bool = True
    finished_at: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    result: str | None = None
    error_type: str | None = None
    error_message: str | None = None


@attrs.define(eq=False)
class Worker:
    """A registered worker."""

    info: WorkerInfo
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    draining: bool = False

    def alive(self, now: dt.datetime) -> bool:
        """Whether its lease has not run out."""
        return self.heartbeat_at + dt.timedelta(seconds=self.info.lease) >= now


def check_task(asked: NewTask) -> None:
    """Raise for a task that a database would not take."""
    object_from_text(asked.params)


def check_settlement(settlement: Settlement) -> None:
    """Raise for a settlement that a database would not take."""
    transition(State.RUNNING, settlement.event)
    details = settlement.error.details if settlement.error else None
    for text, name in (settlement.result, "result"), (details, "error details"):
        if text is not None and (fault := find_fault(json.loads(text), name)):
            raise ValueError(fault)


def execution(task_id: int, number: int, place: Place, outcome: Outcome) -> Attempt:
    """Return the log entry of the attempt that *place* is."""
    assert place.worker_id is not None
    assert place.started_at is not None
    return Attempt(
        task_id=task_id,
        number=number,
        outcome=outcome,
        worker_id=place.worker_id,
        started_at=place.started_at,
    )


def within(tasks: Iterable[Task], lanes: Sequence[Lane] | None) -> list[Task]:
    """Return the tasks that fit the lanes, each lane's best first."""
    if lanes is None:
        return list(tasks)
    queued: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        queued[task.asked.queue].append(task)
    return [task for lane in lanes for task in sorted(queued[lane.queue], key=order)[: lane.slots]]


def order(task: Task) -> tuple[int, int]:
    """Sort key: best priority first, oldest first."""
    return (-task.asked.priority, task.id)
