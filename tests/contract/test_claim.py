from __future__ import annotations

import pytest
import trio

from nursery_queue._core._model import QueueSlots
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


async def test_a_claim_is_exclusive(store: Store) -> None:
    """A claimed task is not offered again, to anybody."""
    await store.enqueue([a_task() for _ in range(3)])
    one, other = await hire(store), await hire(store)

    assert len(await claim(store, one, 2)) == 2
    assert len(await claim(store, other, 9)) == 1
    assert await claim(store, one, 9) == []


async def test_many_workers_at_once(store: Store) -> None:
    """Workers who claim at the same moment get every task once."""
    refs = await store.enqueue([a_task(queue=f"q{i % 3}") for i in range(120)])
    taken: list[int] = []

    async def work() -> None:
        worker = await hire(store)
        # An empty answer may mean that others were taking everything at that moment.
        while await count(store, State.READY):
            taken.extend(one.fence.task_id for one in await claim(store, worker, 7))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(work)

    assert sorted(taken) == [ref.id for ref in refs]


async def test_the_order(store: Store) -> None:
    """Best priority first, whatever the queue; the oldest of equals."""
    priorities = [0, 5, -5, 5, 0, 2**31 - 1, -(2**31)]
    refs = await store.enqueue(
        [a_task(priority=p, queue=f"q{i % 2}") for i, p in enumerate(priorities)]
    )
    worker = await hire(store)
    first, rest = await claim(store, worker, 3), await claim(store, worker)
    order = [refs[i].id for i in (5, 1, 3, 0, 4, 2, 6)]

    assert [one.fence.task_id for one in first + rest] == order


async def test_a_task_that_comes_back_is_as_old_as_it_is(store: Store) -> None:
    """A released task goes before those that were stored after it."""
    task = await claimed_once(store)
    await add(store)
    await settle(store, task.fence, Event.INTERRUPT)

    assert (await claim_one(store, task.worker)).fence.task_id == task.id


async def test_only_what_the_worker_knows(store: Store) -> None:
    """Other types stay where they are, also when they are first in line."""
    await store.enqueue([a_task(task_type="unknown", priority=9) for _ in range(5)])
    mine = await add(store)
    also = await add(store, task_type="also")
    worker = await hire(store)

    assert [one.fence.task_id for one in await claim(store, worker)] == [mine]
    assert await claim(store, worker, task_types=[]) == []
    found = await claim(store, worker, task_types=[TYPE, "also", "none"])

    assert [one.fence.task_id for one in found] == [also]
    assert await count(store, State.READY) == 5


async def test_only_the_queues_asked_for(store: Store) -> None:
    """With queue_slots, other queues are left alone; without, all are served."""
    refs = await store.enqueue([a_task(queue=queue) for queue in ("a", "b", "c")])
    worker = await hire(store)

    assert await claim(store, worker, queue_slots=[]) == []
    assert await claim(store, worker, queue_slots=[QueueSlots(queue="none", slots=5)]) == []

    found = await claim(
        store, worker, queue_slots=[QueueSlots(queue=q, slots=5) for q in ("b", "none")]
    )

    assert [one.fence.task_id for one in found] == [refs[1].id]
    assert {one.queue for one in await claim(store, worker)} == {"a", "c"}


async def test_the_limit_of_a_lane(store: Store) -> None:
    """No lane gives more than its slots, and all together no more than the limit."""
    await store.enqueue([a_task(queue=queue) for queue in ("a", "b") for _ in range(6)])
    worker = await hire(store)

    def queue_slots(a: int, b: int) -> list[QueueSlots]:
        return [QueueSlots(queue="a", slots=a), QueueSlots(queue="b", slots=b)]

    first = await claim(store, worker, queue_slots=queue_slots(1, 2))
    second = await claim(store, worker, 3, queue_slots=queue_slots(2, 4))
    third = await claim(store, worker, queue_slots=queue_slots(0, 1))

    assert [one.queue for one in first] == ["a", "b", "b"]
    assert len(second) == 3
    assert [one.queue for one in second].count("a") <= 2
    assert [one.queue for one in third] == ["b"]


async def test_lanes_keep_the_order(store: Store) -> None:
    """Over several queue_slots too the best of all comes first."""
    refs = await store.enqueue(
        [a_task(queue=q, priority=p) for q, p in zip("abab", (1, 2, 3, 4), strict=True)]
    )
    queue_slots = [QueueSlots(queue="a", slots=9), QueueSlots(queue="b", slots=9)]
    worker = await hire(store)
    found = await claim(store, worker, 2, queue_slots=queue_slots) + await claim(
        store, worker, queue_slots=queue_slots
    )

    assert [one.fence.task_id for one in found] == [refs[i].id for i in (3, 2, 1, 0)]


@pytest.mark.parametrize("limit", [0, 1, 4, 5])
async def test_the_limit(store: Store, limit: int) -> None:
    """A claim takes as many as are asked for, if there are so many, and not one more."""
    await store.enqueue([a_task(queue=f"q{i % 2}") for i in range(4)])
    worker = await hire(store)

    assert len(await claim(store, worker, limit)) == min(limit, 4)
    assert await count(store, State.RUNNING) == min(limit, 4)


async def test_only_registered_workers(store: Store) -> None:
    """Who has not registered, or has left, gets nothing."""
    worker = await hire(store)
    await store.deregister(worker)
    await add(store)

    assert await claim(store, worker) == []

    await hire(store)

    assert await claim(store, worker) == []
    assert await count(store, State.READY) == 1


async def test_a_claim_is_counted(store: Store, virtual_time: VirtualTime) -> None:
    """A running task says who runs it, since when, and for the how-manieth time."""
    task = await claimed_once(store)
    found = await status(store, task.id)

    assert (found.state, found.attempt, found.worker_id) == (State.RUNNING, 1, task.worker)
    assert found.started_at == found.created_at
    assert found.finished_at is None


async def test_an_epoch_is_never_used_twice(store: Store, virtual_time: VirtualTime) -> None:
    """Whatever brings a task back, its next claim has a fence of its own."""
    task_id, worker = await add(store), await hire(store)
    epochs: list[int] = []
    for event in (Event.INTERRUPT, Event.SNOOZE, Event.RETRY, Event.LOSE, Event.FAIL, Event.CANCEL):
        one = await claim_one(store, worker)
        epochs.append(one.fence.epoch)
        await settle(store, one, event, attempt=0)
        virtual_time.advance(60)
        await store.promote()
        await store.retry(task_id)
        await store.heartbeat(worker, draining=False)
    epochs.append((await claim_one(store, worker)).fence.epoch)

    assert epochs == sorted(set(epochs))
    assert await state(store, task_id) is State.RUNNING


async def test_the_next_due_time(store: Store, virtual_time: VirtualTime) -> None:
    """A claim says in how many seconds something is due, also when it takes nothing."""
    worker = await hire(store)

    assert (await store.claim(worker, [TYPE], limit=1)).next_due is None

    await add(store)
    await add(store, run_after=90)
    await add(store, run_after=30, queue="elsewhere", task_type="unknown")
    taken = await store.claim(worker, [TYPE], limit=1)

    assert (len(taken.claims), taken.next_due) == (1, 30.0)

    virtual_time.advance(40)

    assert (await store.claim(worker, [TYPE], limit=0)).next_due == -10.0

    await store.promote()

    assert (await store.claim(worker, [TYPE], limit=0)).next_due == 50.0
