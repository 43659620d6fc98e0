"""Queues of which so many tasks with one key may be running, over all workers."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from nursery_queue._core._model import QueueSlots
from nursery_queue._core._states import Event, State
from nursery_queue._store import Bell, Store
from nursery_queue.testing import VirtualTime
from tests.support.flow_steps import TWO_TYPES, add_keyed, running, take
from tests.support.listening import listening
from tests.support.store_steps import LEASE, claim, count, ends, hire, settle


async def test_no_more_of_a_key(store: Store) -> None:
    """All workers together run so many of a key, of any type, and the next when one has ended."""
    await add_keyed(store, "aaab")
    await add_keyed(store, "aaab", task_type="other")
    one, other = await hire(store), await hire(store)
    await store.configure("default", max_running_per_key=2)

    (first,) = (await take(store, one, 1)).claims
    await take(store, other)
    assert await running(store) == {("default", "a"): 2, ("default", "b"): 2}
    await settle(store, first, Event.SUCCEED)
    assert len((await take(store, one)).claims) == 1
    assert (await take(store, other)).claims == []
    assert await running(store) == {("default", "a"): 2, ("default", "b"): 2}


async def test_tasks_without_a_key(store: Store) -> None:
    """They are not limited, and do not count."""
    await add_keyed(store, [None] * 5)
    await add_keyed(store, ["a"] * 3)
    worker = await hire(store)
    await store.configure("default", max_running_per_key=1)

    await claim(store, worker)

    assert await running(store) == {("default", None): 5, ("default", "a"): 1}


@pytest.mark.parametrize("event", [Event.RETRY, Event.SNOOZE, Event.FAIL, Event.CANCEL])
async def test_what_waits_or_has_ended_takes_no_room(store: Store, event: Event) -> None:
    """However an attempt ends, the room of its key is free at once."""
    await add_keyed(store, "aa")
    worker = await hire(store)
    await store.configure("default", max_running_per_key=1)
    (only,) = await claim(store, worker)

    await settle(store, only, event)

    assert len(await claim(store, worker)) == 1


async def test_what_was_claimed_before_there_was_a_limit(store: Store) -> None:
    """It counts, and it is left alone although it is more than may run now."""
    await add_keyed(store, "aaaa")
    worker = await hire(store)
    first, second, _ = await claim(store, worker, 3)
    await add_keyed(store, "b")
    await store.configure("default", max_running_per_key=2)

    assert len(await claim(store, worker)) == 1
    assert (await running(store))["default", "a"] == 3
    for one in first, second:
        await settle(store, one, Event.SUCCEED)
    assert len(await claim(store, worker)) == 1


@pytest.mark.parametrize("limit", [0, None])
async def test_none_and_no_limit(store: Store, limit: int | None) -> None:
    """A limit of 0 lets nothing with a key start, and taking it away lets everything."""
    await add_keyed(store, [*"aaaab", None])
    worker = await hire(store)
    await store.configure("default", max_running_per_key=limit)

    assert len(await claim(store, worker)) == (6 if limit is None else 1)


async def test_both_limits(store: Store) -> None:
    """Of a queue with a limit of its own and one of each key neither is exceeded."""
    await add_keyed(store, "aaabbbcccddd")
    worker = await hire(store)
    await store.configure("default", max_running=5, max_running_per_key=2)

    held = await claim(store, worker)

    found = await running(store)
    assert len(held) == found.total() == 5
    assert max(found.values()) == 2


async def test_keys_of_another_queue(store: Store) -> None:
    """The same key in another queue is another one."""
    for queue in "xy":
        await add_keyed(store, "aaa", queue=queue)
    worker = await hire(store)
    await store.configure("x", max_running_per_key=1)

    await claim(store, worker)

    assert await running(store) == {("x", "a"): 1, ("y", "a"): 3}


async def test_a_full_key_is_stepped_over(store: Store) -> None:
    """However many tasks of it are the most urgent, others start."""
    await add_keyed(store, ["a"] * 150, priority=9)
    known = await add_keyed(store, "bbaac")
    worker = await hire(store)
    await store.configure("default", max_running_per_key=2)
    assert len(await claim(store, worker, 2)) == 2

    claimed = await take(store, worker, 10)

    assert Counter(known[one.fence.task_id] for one in claimed.claims) == {"b": 2, "c": 1}
    assert claimed.held_back


async def test_the_oldest_of_a_key(store: Store) -> None:
    """Of a key the best priority comes first, and of equals the oldest."""
    ids = [
        next(iter(await add_keyed(store, ["a"], priority=priority))) for priority in (0, 5, 0, 5)
    ]
    worker = await hire(store)
    await store.configure("default", max_running_per_key=1)
    found: list[int] = []

    for _ in ids:
        (one,) = await claim(store, worker)
        found.append(one.fence.task_id)
        await settle(store, one, Event.SUCCEED)

    assert found == [ids[1], ids[3], ids[0], ids[2]]


async def test_a_key_of_two_types(store: Store) -> None:
    """What one type takes of a key is not there for the other, and nothing that may start stays."""
    await add_keyed(store, "ab")
    await add_keyed(store, "abc", task_type="other")
    worker = await hire(store)
    await store.configure("default", max_running_per_key=1)

    for _ in range(3):
        await take(store, worker)

    assert await running(store) == {("default", key): 1 for key in "abc"}


async def test_what_could_not_start_at_once(store: Store) -> None:
    """Of a queue with a limit per key a worker gets only what it can start now."""
    await add_keyed(store, "abcdefghi")
    worker = await hire(store)
    await store.configure("default", max_running_per_key=1)

    claimed = await take(store, worker, 12, at_once=2)

    assert len(claimed.claims) == 2
    assert claimed.held_back


@pytest.mark.parametrize(("limit", "taken"), [(49, 12), (48, 2), (4, 2)])
async def test_a_limit_that_is_far(store: Store, limit: int, taken: int) -> None:
    """Where many times more may run than a worker asks for, it may hold some of them ahead."""
    await add_keyed(store, [None] * 60)
    worker = await hire(store)
    await store.configure("default", max_running=limit)

    assert len(await claim(store, worker, 12, at_once=2)) == taken


async def test_a_dead_worker(store: Store, virtual_time: VirtualTime) -> None:
    """What a dead worker held counts until it is swept, and no longer."""
    await add_keyed(store, "aaa")
    one = await hire(store)
    await store.configure("default", max_running_per_key=2)
    assert len(await claim(store, one)) == 2
    virtual_time.advance(LEASE + 1)
    other = await hire(store)

    assert await claim(store, other) == []
    assert await store.sweep(max_lost=3) == 2
    assert len(await claim(store, other)) == 2


async def test_what_is_not_to_start_any_more(store: Store) -> None:
    """Asked for, the store names the queues with more tasks of a key running than may."""
    names = ["none", "fewer", "full", "free", "without"]
    for queue in names:
        await add_keyed(store, [None] * 3 if queue == "without" else "aabb", queue=queue)
    worker = await hire(store)
    slots = [QueueSlots(queue=queue, slots=9) for queue in names]
    assert len(await claim(store, worker, queue_slots=slots)) == 19
    for queue, limit in {"none": 0, "fewer": 1, "full": 2, "free": 3, "without": 0}.items():
        await store.configure(queue, max_running_per_key=limit)

    assert await store.closed_queues(names) == {"none", "fewer"}


async def test_room_is_news(store: Store) -> None:
    """Whoever found a key full hears when a task of it has ended."""
    await add_keyed(store, "aa")
    worker = await hire(store)
    await store.configure("default", max_running_per_key=1)
    (only,) = await claim(store, worker)
    assert (await take(store, worker)).held_back
    async with listening(store, [Bell.WORK]) as ear:
        before = ear.heard[Bell.WORK]
        await settle(store, only, Event.SUCCEED)
        await ear.hears(Bell.WORK, after=before)


async def test_many_at_once(store: Store) -> None:
    """Workers who claim and settle at the same moment never have more than the limit of a key."""
    await add_keyed(store, [f"k{i % 7}" for i in range(75)])
    await add_keyed(store, [f"k{i % 7}" for i in range(75)], task_type="other")
    await store.configure("default", max_running_per_key=2, max_running=9)
    most: Counter[str | None] = Counter()

    async def work() -> None:
        worker = await hire(store)
        while await count(store, State.READY):
            claimed = await store.claim(worker, TWO_TYPES, limit=3)
            for one in claimed.claims:
                await store.settle([ends(one, Event.SUCCEED)])

    async def look() -> None:
        while await count(store, State.READY):
            found = await running(store)
            for (_, key), number in found.items():
                most[key] = max(most[key], number)
            most[None] = max(most[None], found.total())

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(work)
            nursery.start_soon(look)

    assert await count(store, State.SUCCEEDED) == 150
    assert most.pop(None) <= 9
    assert max(most.values()) <= 2


async def test_a_claim_that_is_full_holds_nothing_back(store: Store) -> None:
    """What a queue's limit would have let start, had there been a place left, is not held back."""
    await store.configure("mail", max_running=1)
    worker = await hire(store)
    await add_keyed(store, [None, "b", None])
    await add_keyed(store, [None], queue="mail")

    assert not (await take(store, worker, 3)).held_back
    assert not (await take(store, worker, 3)).held_back
