from __future__ import annotations

import datetime as dt

from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    TYPE,
    a_task,
    add,
    claim,
    claim_one,
    claimed_once,
    count,
    hire,
    settle,
    state,
    status,
)


async def test_nothing_before_its_time(store: Store, virtual_time: VirtualTime) -> None:
    """A scheduled task is neither promoted nor claimed until it is due, to the microsecond."""
    task_id, worker = await add(store, run_after=10), await hire(store)
    virtual_time.advance(9.999999)

    assert await store.promote() == 0
    assert await claim(store, worker) == []

    virtual_time.advance(0.000001)

    assert await store.promote() == 1
    assert await state(store, task_id) is State.READY
    assert [one.fence.task_id for one in await claim(store, worker)] == [task_id]


async def test_due_is_not_yet_ready(store: Store, virtual_time: VirtualTime) -> None:
    """What is due waits for somebody to promote it; it is then not due a second time."""
    task_id, worker = await add(store, run_after=10), await hire(store)
    virtual_time.advance(11)

    assert await claim(store, worker) == []
    assert await state(store, task_id) is State.SCHEDULED
    assert await store.promote() == 1
    assert await store.promote() == 0
    assert (await store.claim(worker, [TYPE], limit=0)).next_due is None


async def test_at_an_instant(store: Store, virtual_time: VirtualTime) -> None:
    """`run_at` is an instant, whatever its time zone."""
    at = (virtual_time.now() + dt.timedelta(seconds=10)).astimezone(
        dt.timezone(dt.timedelta(hours=-7))
    )
    task_id = await add(store, run_at=at)
    found = await status(store, task_id)
    virtual_time.advance((found.run_at - found.created_at).total_seconds() - 0.5)

    assert (found.state, found.run_at) == (State.SCHEDULED, at)
    assert await store.promote() == 0

    virtual_time.advance(0.5)

    assert await store.promote() == 1


async def test_in_bulk(store: Store, virtual_time: VirtualTime) -> None:
    """Many are promoted in one call, though not without bound; those due later stay."""
    await store.enqueue([a_task(run_after=5) for _ in range(1500)])
    await store.enqueue([a_task(run_after=60) for _ in range(10)])
    virtual_time.advance(5)
    calls: list[int] = []
    while promoted := await store.promote():
        calls.append(promoted)

    assert sum(calls) == 1500
    assert 2 <= len(calls) <= 15
    assert await count(store, State.READY) == 1500
    assert await count(store, State.SCHEDULED) == 10


async def test_it_comes_as_it_was(store: Store, virtual_time: VirtualTime) -> None:
    """A promoted task has its queue, priority and type, and keeps its place in line."""
    late = await add(store, run_after=5, queue="q", priority=3, task_type="other")
    await add(store, queue="q", priority=2, task_type="other")
    await add(store, queue="q", priority=3, task_type="other")
    virtual_time.advance(5)
    await store.promote()
    first, *_ = await claim(store, await hire(store), task_types=["other"])

    assert (first.fence.task_id, first.queue, first.task_type) == (late, "q", "other")
    assert (await status(store, late)).priority == 3


async def test_a_retried_task_keeps_its_counts(store: Store, virtual_time: VirtualTime) -> None:
    """The wait between attempts loses neither attempt, losses nor epoch."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.RETRY, attempt=2, lost=1, delay=7.5)
    waiting = await status(store, task.id)
    virtual_time.advance(7.5)

    assert waiting.run_at - waiting.created_at == dt.timedelta(seconds=7.5)
    assert await store.promote() == 1

    one = await claim_one(store, task.worker)

    assert (one.attempt, one.lost) == (3, 1)
    assert one.fence.epoch > task.fence.epoch


async def test_no_wait_at_all(store: Store, virtual_time: VirtualTime) -> None:
    """A retry without delay is scheduled like any other, and due at once."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.RETRY, delay=0)

    assert (await store.claim(task.worker, [TYPE], limit=1)).next_due == 0
    assert await store.promote() == 1


async def test_only_waiting_tasks_are_promoted(store: Store, virtual_time: VirtualTime) -> None:
    """A task that has been cancelled, claimed or finished is not promoted."""
    task_id = await add(store, run_after=5)
    await store.cancel(task_id)
    await claimed_once(store)
    virtual_time.advance(10)

    assert await store.promote() == 0
