"""The rows of `MemoryStore`."""

from __future__ import annotations

import datetime as dt
import json

from collections.abc import Mapping
from typing import Any, Self
from uuid import UUID

import attrs

from nursery_queue._core._declaration import AS_DECLARED, KEY_AS_DECLARED
from nursery_queue._core._filters import CancelFilter
from nursery_queue._core._heartbeat import MARGIN, Late, Seen
from nursery_queue._core._json_text import as_jsonb, find_fault, object_from_text, to_text
from nursery_queue._core._keys import LONGEST_KEY
from nursery_queue._core._model import (
    Attempt,
    NewTask,
    Outcome,
    QueueStatus,
    Settlement,
    WorkerInfo,
)
from nursery_queue._core._queue_changes import QueueChanges
from nursery_queue._core._rate import Rate
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import State, transition


LONGEST_NAME = 255
Lane = tuple[str, str | None]  # a queue and a key; None: the queue as a whole


@attrs.frozen(kw_only=True)
class Task:
    """A task as it was asked for; never changes."""

    id: int
    asked: NewTask
    created_at: dt.datetime
    run_at: dt.datetime
    queue: str  # as asked, or else as declared
    priority: int
    completes: int | None = None
    tick: dt.datetime | None = None  # the instant of a schedule that it stands for


@attrs.frozen(kw_only=True)
class Position:
    """Where a task is. Each state uses the fields it needs."""

    state: State
    attempt: int = 0
    epoch: int = 0
    lost: int = 0
    due_at: dt.datetime | None = None  # while it is scheduled
    ready_at: dt.datetime | None = None
    worker_id: UUID | None = None
    started_at: dt.datetime | None = None
    cancel_requested: bool = False
    cancel_interrupts: bool = True
    started: bool = True  # while it is running; False: held ahead, not known to have started
    suspect: bool = False  # its worker died holding it, and it may have been at fault
    finished_at: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    result: str | None = None
    error_type: str | None = None
    error_message: str | None = None


@attrs.frozen(kw_only=True)
class Setting:
    """How a queue is set."""

    paused: bool = False
    max_running: int | None = None
    max_running_per_key: int | None = None
    rate: Rate | None = None
    rate_per_key: Rate | None = None
    notify: bool = True
    declared: QueueChanges | None = None  # what code has declared of it

    @property
    def limits_running(self) -> bool:
        """Whether the end of a task can make room for another."""
        return self.max_running is not None or self.max_running_per_key is not None

    @property
    def limits_keys(self) -> bool:
        """Whether each key has a limit or a rate of its own."""
        return self.max_running_per_key is not None or self.rate_per_key is not None

    @property
    def limited(self) -> bool:
        """Whether there is any limit or rate."""
        return self.limits_running or self.limits_keys or self.rate is not None

    @property
    def open(self) -> bool:
        """Whether the end of a task can make room for another: no limit of 0, which is a pause."""
        return not self.paused and self.max_running != 0

    def declare(self, declared: QueueChanges) -> Self:
        """Return it as code declares it; what was declared, and is no more, is as never set."""
        gone = {name: getattr(Setting(), name) for name in self.declared or ()}
        return attrs.evolve(self, **{**gone, **declared, "declared": declared})

    def status(self, name: str, live: Mapping[State, int]) -> QueueStatus:
        """Return it as it is shown, with how many *live* tasks it has."""
        shown = attrs.asdict(self, recurse=False, filter=lambda each, _: each.name != "declared")
        return QueueStatus(
            name=name,
            **shown,
            scheduled=live.get(State.SCHEDULED, 0),
            ready=live.get(State.READY, 0),
            running=live.get(State.RUNNING, 0),
        )


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

    def is_late(self, now: dt.datetime) -> bool:
        """Whether its last heartbeat was two of them ago, or is as far in the future."""
        return abs(now - self.heartbeat_at) > 2 * dt.timedelta(seconds=self.info.heartbeat)

    def late(self, now: dt.datetime) -> Late:
        """Return it as other workers are told of it, so that they find out whether it is dead."""
        lease = self.info.lease
        return Late(
            id=self.info.id,
            heartbeat_at=self.heartbeat_at.isoformat(),
            dead_after=lease if self.alive(now) else min(self.info.heartbeat + MARGIN, lease),
        )

    def dead(self, now: dt.datetime, seen: Seen) -> bool:
        """Whether it is dead, after what another worker has seen of it."""
        late = self.late(now)
        return seen.heartbeat_at == late.heartbeat_at and seen.seconds >= late.dead_after


def as_stored(asked: NewTask) -> NewTask:
    """Return *asked* with its JSON as a database would give it back."""
    return attrs.evolve(
        asked,
        params=as_jsonb(asked.params),
        context=None if asked.context is None else as_jsonb(asked.context),
    )


def check_task(asked: NewTask) -> None:
    """Raise for a task that a database would not take."""
    object_from_text(asked.params)
    if asked.key is not None and not 1 <= len(asked.key.encode()) <= LONGEST_KEY:
        raise ValueError(f"key must have 1 to {LONGEST_KEY} bytes, not {asked.key!r}")
    for name in ("task_type", "queue", "dedup_key"):
        if (value := getattr(asked, name)) is not None:
            check_name(value, name)
    if asked.on_complete is not None:
        check_names_in(json.loads(asked.on_complete))


def check_name(value: str, what: str) -> None:
    """Raise for a name that an index would not take."""
    if not 1 <= len(value) <= LONGEST_NAME:
        raise ValueError(f"{what} must have 1 to {LONGEST_NAME} characters, not {value!r}")


def check_names_in(on_complete: dict[str, Any] | None) -> None:
    """Raise for a completion that could not be stored when its task has ended."""
    while on_complete is not None:
        check_name(on_complete["task_type"], "on_complete.task_type")
        check_name(on_complete.get("queue") or "default", "on_complete.queue")
        on_complete = on_complete.get("on_complete")


def check_settlement(settlement: Settlement) -> None:
    """Raise for a settlement that a database would not take."""
    transition(State.RUNNING, settlement.event)
    details = settlement.error.details if settlement.error else None
    for text, name in (settlement.result, "result"), (details, "error details"):
        if text is not None and (fault := find_fault(json.loads(text), name)):
            raise ValueError(fault)


def execution(
    task_id: int, number: int, place: Position, outcome: Outcome, worker_name: str | None
) -> Attempt:
    """Return the log entry of the attempt that *place* is."""
    assert place.worker_id is not None
    assert place.started_at is not None
    return Attempt(
        task_id=task_id,
        number=number,
        outcome=outcome,
        worker_id=place.worker_id,
        started_at=place.started_at,
        worker_name=worker_name,
    )


def completion(task: Task, ended: Position, why_cancelled: str) -> NewTask | None:
    """Return the task that tells how *task* ended, if there is to be one."""
    if task.asked.on_complete is None:
        return None
    match ended.state:
        case State.SUCCEEDED:
            value = None if ended.result is None else json.loads(ended.result)
            ending = {"status": "succeeded", "value": value}
        case State.FAILED:
            error = f"{ended.error_type}: {ended.error_message}"
            ending = {"status": "failed", "error_type": ended.error_type, "error": error}
        case _:
            ending = {"status": "cancelled", "reason": why_cancelled}
    context = None if task.asked.context is None else json.loads(task.asked.context)
    asked = json.loads(task.asked.on_complete)
    nested, backoff = asked.pop("on_complete", AS_DECLARED), asked.pop("backoff", None)
    said: dict[str, Any] = {"queue": None, "priority": None, "key": KEY_AS_DECLARED}
    said |= {name: asked[name] for name in asked if name not in {"context", "timeout"}}
    return NewTask(
        **said,
        params=to_text({"task_id": task.id, "context": context, "result": ending}, "params"),
        backoff=None if backoff is None else RetryPolicy(**backoff),
        timeout=float(asked["timeout"]) if "timeout" in asked else None,
        on_complete=nested if nested in (None, AS_DECLARED) else to_text(nested, "on_complete"),
        context=to_text(asked["context"], "context") if "context" in asked else None,
    )


def replaced(task: Task, asked: NewTask, now: dt.datetime) -> Task:
    """Return *task* as a debounced call replaces it; all of *asked* is said."""
    assert asked.debounce is not None
    assert asked.queue is not None
    assert asked.priority is not None
    due_at = now + dt.timedelta(seconds=asked.debounce.wait)
    if asked.debounce.max_wait is not None:
        latest = task.created_at + dt.timedelta(seconds=asked.debounce.max_wait)
        due_at = max(now, min(due_at, latest))
    said = {name: getattr(asked, name) for name in ("task_type", "params", "queue", "key")}
    return attrs.evolve(
        task,
        asked=as_stored(attrs.evolve(task.asked, priority=asked.priority, **said)),
        run_at=due_at,
        queue=asked.queue,
        priority=asked.priority,
    )


def tells(task: Task) -> str | None:
    """Return the type of the task that is to tell how *task* ends, if there is to be one."""
    if task.asked.on_complete is None:
        return None
    name: str = json.loads(task.asked.on_complete)["task_type"]
    return name


def fits(task: Task, which: CancelFilter) -> bool:
    """Whether *task* fits *which*."""
    return (
        which.queue in (None, task.queue)
        and which.task_type in (None, task.asked.task_type)
        and (which.before is None or task.created_at < which.before)
    )


def order(task: Task) -> tuple[int, int]:
    """Sort key: best priority first, oldest first."""
    return (-task.priority, task.id)
