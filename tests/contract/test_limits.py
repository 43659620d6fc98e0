"""Queues that are paused, or that may have so many tasks running over all workers."""

from __future__ import annotations

import pytest
import trio

from nursery_queue._core._model import QueueSlots, QueueStatus
from nursery_queue._core._states import Event, State
from nursery_queue._store import Bell, Store
from nursery_queue.testing import VirtualTime
from tests.support.listening import listening
from tests.support.store_steps import (
    LEASE,
    a_task,
    add,
    claim,
    count,
    ends,
    hire,
    settle,
    state,
)


async def test_no_more_than_the_limit(store: Store) -> None:
    """All workers together get as many as may run, and the next when one has ended."""
    await store.enqueue([a_task() for _ in range(9)])
    one, other = await hire(store), await hire(store)
    await store.configure("default", max_running=3)

    (first, *_) = await claim(store, one, 2)
    assert len(await claim(store, other)) == 1
    assert await claim(store, other) == []
    await settle(store, first, Event.SUCCEED)
    assert len(await claim(store, other)) == 1
    assert await claim(store, one) == []


@pytest.mark.parametrize("event", [Event.RETRY, Event.SNOOZE, Event.FAIL, Event.CANCEL])
async def test_what_waits_or_has_ended_takes_no_room(store: Store, event: Event) -> None:
    """However an attempt ends, its room is free at once; waiting for the next takes none."""
    await store.enqueue([a_task() for _ in range(2)])
    worker = await hire(store)
    await store.configure("default", max_running=1)
    (only,) = await claim(store, worker)

    await settle(store, only, event)

    assert len(await claim(store, worker)) == 1


async def test_what_was_claimed_before_there_was_a_limit(store: Store) -> None:
    """It counts, and it is left alone although it is more than may run now."""
    await store.enqueue([a_task() for _ in range(4)])
    worker = await hire(store)
    first, second, third = await claim(store, worker, 3)
    await store.configure("default", max_running=2)

    assert await claim(store, worker) == []
    assert await count(store, State.RUNNING) == 3
    for each in first, second:
        await settle(store, each, Event.SUCCEED)
    assert len(await claim(store, worker)) == 1
    await settle(store, third, Event.SUCCEED)


@pytest.mark.parametrize("limit", [0, None])
async def test_none_and_no_limit(store: Store, limit: int | None) -> None:
    """A limit of 0 lets nothing start, and taking the limit away lets everything."""
    await store.enqueue([a_task() for _ in range(5)])
    worker = await hire(store)
    await store.configure("default", max_running=1)
    assert len(await claim(store, worker)) == 1

    await store.configure("default", max_running=limit)

    assert len(await claim(store, worker)) == (4 if limit is None else 0)


async def test_paused(store: Store) -> None:
    """Nothing of a paused queue starts; what runs can end, and everything goes on as it was."""
    await store.enqueue([a_task() for _ in range(4)])
    other_queue = await add(store, queue="other")
    worker = await hire(store)
    await store.configure("default", max_running=2)
    (running,) = await claim(store, worker, 1)
    await store.configure("default", paused=True)

    (only,) = await claim(store, worker)
    assert only.fence.task_id == other_queue
    await settle(store, running, Event.SUCCEED)
    assert await state(store, running.fence.task_id) is State.SUCCEEDED
    assert await claim(store, worker) == []
    await store.configure("default", paused=False)
    assert len(await claim(store, worker)) == 2


async def test_what_is_not_to_start_any_more(store: Store) -> None:
    """Asked for, the store names the queues that are paused or have more running than may."""
    names = ["paused", "none", "fewer", "full", "free", "untouched"]
    await store.enqueue([a_task(queue=queue) for queue in names for _ in range(3)])
    worker = await hire(store)
    queue_slots = [QueueSlots(queue=queue, slots=2) for queue in names]
    assert len(await claim(store, worker, queue_slots=queue_slots)) == 12
    await store.configure("paused", paused=True)
    for queue, limit in {"none": 0, "fewer": 1, "full": 2, "free": 3}.items():
        await store.configure(queue, max_running=limit)

    assert await store.closed_queues(names) == {"paused", "none", "fewer"}
    assert await store.closed_queues(["fewer", "full"]) == {"fewer"}
    assert await store.closed_queues([]) == set()


async def test_a_queue_beside(store: Store) -> None:
    """The limit of one queue is no concern of another, and a full one is stepped over."""
    await store.enqueue([a_task(queue="few", priority=9) for _ in range(9)])
    await store.enqueue([a_task(queue="many") for _ in range(9)])
    worker = await hire(store)
    await store.configure("few", max_running=2)

    queues = [one.queue for one in await claim(store, worker, 8)]

    assert queues == ["few"] * 2 + ["many"] * 6


async def test_what_could_not_start_at_once(store: Store) -> None:
    """Of a queue with a limit a worker gets only what it can start now; others may have more."""
    await store.enqueue([a_task(queue=queue) for queue in ("few", "many") for _ in range(9)])
    worker = await hire(store)
    await store.configure("few", max_running=5)

    queues = [one.queue for one in await claim(store, worker, 12, at_once=2)]

    assert sorted(queues) == ["few"] * 2 + ["many"] * 9


async def test_the_worker_has_limits_of_its_own(store: Store) -> None:
    """Of the slots a worker has left for a queue and the queue's own room the smaller counts."""
    await store.enqueue([a_task(queue="a") for _ in range(9)])
    one, other = await hire(store), await hire(store)
    await store.configure("a", max_running=5)

    assert len(await claim(store, one, queue_slots=[QueueSlots(queue="a", slots=3)])) == 3
    assert len(await claim(store, other, queue_slots=[QueueSlots(queue="a", slots=3)])) == 2


async def test_a_dead_worker(store: Store, virtual_time: VirtualTime) -> None:
    """What a dead worker held counts until it is swept, and no longer."""
    await store.enqueue([a_task() for _ in range(3)])
    one = await hire(store)
    await store.configure("default", max_running=2)
    assert len(await claim(store, one)) == 2
    virtual_time.advance(LEASE + 1)
    other = await hire(store)

    assert await claim(store, other) == []
    assert await store.sweep(max_lost=3) == 2
    assert len(await claim(store, other)) == 2


async def test_many_at_once(store: Store) -> None:
    """Workers who claim and settle at the same moment never have more than the limit."""
    await store.enqueue([a_task(queue=f"q{i % 2}") for i in range(150)])
    limits = {"q0": 3, "q1": 1}
    for queue, limit in limits.items():
        await store.configure(queue, max_running=limit)
    most: dict[str, int] = {}

    async def work() -> None:
        worker = await hire(store)
        while await count(store, State.READY):
            for one in await claim(store, worker, 2):
                await store.settle([ends(one, Event.SUCCEED)])

    async def look() -> None:
        while await count(store, State.READY):
            for queue in await store.queues():
                most[queue.name] = max(most.get(queue.name, 0), queue.running)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(work)
            nursery.start_soon(look)

    assert await count(store, State.SUCCEEDED) == 150
    assert most["q0"] <= 3
    assert most["q1"] <= 1


async def test_the_list_of_queues(store: Store) -> None:
    """Every queue that is set or has live tasks is there, and what has ended is not counted."""
    await store.enqueue(
        [a_task(queue="b"), a_task(queue="b"), a_task(queue="b", run_after=60), a_task(queue="a")]
    )
    worker = await hire(store)
    (one, other) = await claim(
        store, worker, queue_slots=[QueueSlots(queue="b", slots=1), QueueSlots(queue="a", slots=1)]
    )
    await settle(store, one if one.queue == "a" else other, Event.SUCCEED)
    await store.configure("c", max_running=7)
    await store.configure("b", paused=True)

    assert await store.queues() == [
        QueueStatus(name="b", paused=True, max_running=None, scheduled=1, ready=1, running=1),
        QueueStatus(name="c", paused=False, max_running=7, scheduled=0, ready=0, running=0),
    ]


async def test_pausing_keeps_the_limit(store: Store) -> None:
    """Pausing and limiting are two things: neither changes the other."""
    await store.configure("a", max_running=4)
    await store.configure("a", paused=True)
    await store.configure("a", max_running=5)
    (queue,) = await store.queues()
    assert (queue.max_running, queue.paused) == (5, True)

    await store.configure("a", paused=False)
    (queue,) = await store.queues()
    assert (queue.max_running, queue.paused) == (5, False)


async def test_a_change_is_news(store: Store) -> None:
    """A queue that is resumed, paused or limited differently rings for those it concerns."""
    async with listening(store, [Bell.WORK, Bell.CANCEL]) as ear:
        for limit in 3, None:
            before = ear.heard[Bell.WORK]
            await store.configure("a", max_running=limit)
            await ear.hears(Bell.WORK, after=before)
        before = ear.heard[Bell.CANCEL]
        await store.configure("a", paused=True)
        await ear.hears(Bell.CANCEL, after=before)
        before = ear.heard[Bell.WORK]
        await store.configure("a", paused=False)
        await ear.hears(Bell.WORK, after=before)


async def test_room_is_news(store: Store) -> None:
    """Whoever found a queue full hears when a task of it has ended."""
    await store.enqueue([a_task() for _ in range(2)])
    worker = await hire(store)
    await store.configure("default", max_running=1)
    (only,) = await claim(store, worker)
    async with listening(store, [Bell.WORK]) as ear:
        before = ear.heard[Bell.WORK]
        await settle(store, only, Event.SUCCEED)
        await ear.hears(Bell.WORK, after=before)


async def test_how_late_it_is(store: Store, virtual_time: VirtualTime) -> None:
    """A claim says how long the task had been due: since it was stored, its time, or its return."""
    worker = await hire(store, lease=10_000.0)
    await add(store)
    later = await add(store, run_after=100)
    virtual_time.advance(7)
    (now,) = await claim(store, worker)
    assert now.lag == pytest.approx(7)
    virtual_time.advance(103)
    await store.promote()
    (scheduled,) = await claim(store, worker)
    assert scheduled.fence.task_id == later
    assert scheduled.lag == pytest.approx(10)
    await settle(store, scheduled, Event.RETRY, delay=50.0)
    virtual_time.advance(53)
    await store.promote()
    (again,) = await claim(store, worker)
    assert again.lag == pytest.approx(3)
    await settle(store, again, Event.INTERRUPT)
    virtual_time.advance(2)
    (back,) = await claim(store, worker)
    assert back.lag == pytest.approx(2)
