"""Steps that many tests of the contract take."""

from __future__ import annotations

import contextlib
import uuid

from collections.abc import Generator, Sequence
from typing import Any
from uuid import UUID

import attrs
import pytest

from nursery_queue._core._errors import TransientError
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import (
    Claim,
    ErrorRecord,
    Fence,
    NewTask,
    Outcome,
    QueueSlots,
    Settlement,
    TaskStatus,
    WorkerInfo,
)
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store


TYPE = "work"
LEASE = 30.0
DAY = 86_400.0
ERROR = ErrorRecord(type="ValueError", message="no good", traceback="line 1", details='{"a": 1}')

OUTCOMES = {
    Event.SUCCEED: Outcome.SUCCEEDED,
    Event.RETRY: Outcome.FAILED,
    Event.SNOOZE: Outcome.SNOOZED,
    Event.FAIL: Outcome.FAILED,
    Event.CANCEL: Outcome.CANCELLED,
    Event.INTERRUPT: Outcome.INTERRUPTED,
    Event.DEFER: Outcome.INTERRUPTED,
    Event.LOSE: Outcome.LOST,
}
# How a running task gets into each of the other states.
WAYS = {
    State.SCHEDULED: Event.RETRY,
    State.READY: Event.INTERRUPT,
    State.SUCCEEDED: Event.SUCCEED,
    State.FAILED: Event.FAIL,
    State.CANCELLED: Event.CANCEL,
}


@attrs.frozen
class Known:
    """A task that has been claimed once, by a registered worker."""

    id: int
    fence: Fence
    worker: UUID


def a_task(**changes: Any) -> NewTask:
    return attrs.evolve(NewTask(task_type=TYPE, params="{}"), **changes)


async def add(store: Store, **changes: Any) -> int:
    (ref,) = await store.enqueue([a_task(**changes)])
    assert ref.created
    return ref.id


async def hire(store: Store, **changes: Any) -> UUID:
    """Register a worker."""
    usual: dict[str, Any] = {
        "id": uuid.uuid4(),
        "name": "w",
        "host": "h",
        "pid": 1,
        "task_types": [TYPE],
        "lease": LEASE,
    }
    info = WorkerInfo(**usual | changes)
    await store.register(info)
    return info.id


async def claim(
    store: Store,
    worker: UUID,
    limit: int = 100,
    *,
    task_types: Sequence[str] = (TYPE,),
    queue_slots: Sequence[QueueSlots] | None = None,
    at_once: int | None = None,
) -> list[Claim]:
    claimed = await store.claim(
        worker, task_types, limit=limit, queue_slots=queue_slots, at_once=at_once
    )
    return list(claimed.claims)


async def claim_one(store: Store, worker: UUID) -> Claim:
    (only,) = await claim(store, worker, 1)
    return only


def ends(which: Claim | Fence, event: Event, **changes: Any) -> Settlement:
    """Return a settlement with the log entry that suits *event*."""
    fence = which.fence if isinstance(which, Claim) else which
    usual = Settlement(
        fence=fence,
        event=event,
        attempt=1,
        lost=0,
        keep_for=DAY,
        outcome=OUTCOMES.get(event),
        delay=60.0,
    )
    return attrs.evolve(usual, **changes)


async def settle(store: Store, which: Claim | Fence, event: Event, **changes: Any) -> None:
    """Settle one claim, which must be accepted."""
    assert await store.settle([ends(which, event, **changes)]) == {}


async def status(store: Store, task_id: int) -> TaskStatus:
    (found,) = await store.status_many([task_id])
    assert found is not None
    return found


async def state(store: Store, task_id: int) -> State | None:
    (found,) = await store.status_many([task_id])
    return None if found is None else found.state


async def count(store: Store, which: State | None = None) -> int:
    return len(await store.list_tasks(TaskFilter(state=which, limit=100_000)))


async def claimed_once(store: Store, **changes: Any) -> Known:
    """Add a task and claim it, with a worker of its own."""
    task_id, worker = await add(store, **changes), await hire(store)
    one = await claim_one(store, worker)
    assert one.fence.task_id == task_id
    return Known(task_id, one.fence, worker)


async def brought_to(store: Store, goal: State, **changes: Any) -> Known:
    """Add a task and bring it to *goal*, by way of running."""
    known = await claimed_once(store, **changes)
    if goal is not State.RUNNING:
        await settle(store, known.fence, WAYS[goal])
    assert await state(store, known.id) is goal
    return known


@contextlib.contextmanager
def refusal() -> Generator[None]:
    """Expect an error that trying again does not cure, of whatever type the store has for it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each store has its own
        yield
    assert not isinstance(caught.value, TransientError | AssertionError)
