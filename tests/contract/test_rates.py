"""Rates: how many tasks of a queue, and of a key, may start in how much time."""

from __future__ import annotations

import random

import pytest
import trio

from nursery_queue._core._model import QueueSlots
from nursery_queue._core._rate import Rate
from nursery_queue._core._states import Event, State
from nursery_queue._store import Bell, Store
from nursery_queue.testing import VirtualTime
from tests.support.flow_steps import Crew, add_keyed, take
from tests.support.listening import listening
from tests.support.store_steps import a_task, add, claim, count, hire, settle


MICROSECOND = 1e-6
RATES = [
    Rate(10, per=60, burst=3),
    Rate(7, per=60),
    Rate(1, per=0.5, burst=2),
    Rate(3, per=1),
    Rate(100, per=3600, burst=50),
    Rate(2, per=1, burst=1000),
]


async def test_a_burst_after_a_quiet_time(store: Store, virtual_time: VirtualTime) -> None:
    """The burst and one more start at once, then one whenever its time has come."""
    await store.enqueue([a_task() for _ in range(30)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(10, per=60, burst=4))

    for _ in range(2):
        assert len(await claim(store, worker)) == 5
        assert await claim(store, worker) == []
        virtual_time.advance(6 - MICROSECOND)
        assert await claim(store, worker) == []
        virtual_time.advance(MICROSECOND)
        assert len(await claim(store, worker)) == 1
        virtual_time.advance(12)
        assert len(await claim(store, worker)) == 2
        virtual_time.advance(3600)


async def test_without_a_burst(store: Store, virtual_time: VirtualTime) -> None:
    """One starts, and the next when its time has come, however long the queue was quiet."""
    await store.enqueue([a_task() for _ in range(9)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(60, per=60))

    for _ in range(3):
        virtual_time.advance(3600)
        assert len(await claim(store, worker)) == 1
        virtual_time.advance(1 - MICROSECOND)
        assert await claim(store, worker) == []
        virtual_time.advance(MICROSECOND)
        assert len(await claim(store, worker)) == 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rate", RATES, ids=str)
async def test_no_window_has_more(
    store: Store, virtual_time: VirtualTime, rate: Rate, seed: int
) -> None:
    """Whenever two workers claim, and however attempts end, each start counts in every window."""
    rng = random.Random(seed)
    await store.enqueue([a_task() for _ in range(400)], copy=True)
    workers = [await hire(store, lease=1e9) for _ in range(2)]
    crew = Crew(store, virtual_time, workers, rng)
    await store.configure("default", rate=rate)

    for _ in range(80):
        virtual_time.advance(rng.choice([0, rng.random(), rate.interval, 3 * rate.interval]))
        virtual_time.advance(rng.choice([0, 0, 0, rate.per / 2, rate.per, 20 * rate.per]))
        await store.promote()
        await crew.claim(rng.choice([1, 3, 100]))
        if rng.random() < 0.7:
            await crew.settle(Event.SUCCEED, Event.RETRY, Event.INTERRUPT, Event.SNOOZE)

    assert len(crew.starts) > rate.burst
    crew.check(rate)


@pytest.mark.parametrize("rate", [Rate(600, per=3600), Rate(7, per=60, burst=5)], ids=str)
async def test_all_of_a_rate_is_used(store: Store, virtual_time: VirtualTime, rate: Rate) -> None:
    """A worker that claims at the instants that it is told of gets all that the rate allows."""
    await store.enqueue([a_task() for _ in range(700)], copy=True)
    crew = Crew(store, virtual_time, [await hire(store, lease=1e9)], random.Random(0))
    await store.configure("default", rate=rate)
    begin = trio.current_time()

    while trio.current_time() < begin + 3600:
        claimed = await crew.claim()
        assert claimed.next_due is not None
        assert claimed.claims
        await crew.settle(Event.SUCCEED)
        virtual_time.advance(claimed.next_due)

    crew.check(rate)
    assert len(crew.starts) >= 0.99 * 3600 * rate.count / rate.per


async def test_what_is_started_again(store: Store, virtual_time: VirtualTime) -> None:
    """Each start counts: of a retry, and of a task that was given back or never started."""
    await add(store)
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=100, burst=2))

    for event in Event.RETRY, Event.INTERRUPT:
        (one,) = await claim(store, worker)
        await settle(store, one, event, delay=1.0)
        virtual_time.advance(1)
        await store.promote()
    assert len(await claim(store, worker)) == 1
    assert await store.give_back_all_but(worker, set()) == 1
    assert await claim(store, worker) == []
    virtual_time.advance(98)
    assert len(await claim(store, worker)) == 1


async def test_when_the_next_may_start(store: Store, virtual_time: VirtualTime) -> None:
    """An answer says when a rate lets more start, or a scheduled task is due if that is before."""
    await store.enqueue([a_task() for _ in range(9)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=60, burst=1))

    assert (await take(store, worker)).next_due == pytest.approx(60)
    virtual_time.advance(20)
    claimed = await take(store, worker)
    assert claimed.next_due == pytest.approx(40)
    assert not claimed.claims
    await add(store, queue="late", run_after=50)
    assert (await take(store, worker)).next_due == pytest.approx(40)
    await add(store, queue="late", run_after=30)
    assert (await take(store, worker)).next_due == pytest.approx(30)


async def test_nothing_is_held_back(store: Store) -> None:
    """A rate of which nothing is waiting has no instant, and one that allows more has none."""
    await store.enqueue([a_task() for _ in range(2)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=60, burst=1))

    claimed = await take(store, worker)

    assert len(claimed.claims) == 2
    assert claimed.next_due is None
    assert (await take(store, worker)).next_due is None


async def test_a_rate_is_no_limit(store: Store) -> None:
    """What is held back by a rate alone waits for no other task to end; by a limit, it does."""
    await store.enqueue([a_task(queue=queue) for queue in ("rate", "limit") for _ in range(3)])
    worker = await hire(store)
    await store.configure("rate", rate=Rate(1, per=60))
    await store.configure("limit", max_running=1)

    rated, limited = [
        await take(store, worker, queue_slots=[QueueSlots(queue=queue, slots=9)])
        for queue in ("rate", "limit")
    ]

    assert [len(each.claims) for each in (rated, limited)] == [1, 1]
    assert [each.held_back for each in (rated, limited)] == [False, True]
    assert rated.next_due == pytest.approx(60, abs=5)  # counted from the start of the claim on
    assert limited.next_due is None


async def test_a_limit_and_a_rate(store: Store, virtual_time: VirtualTime) -> None:
    """Both hold: what the rate allows has to wait for a slot, and a free slot for the rate."""
    await store.enqueue([a_task() for _ in range(9)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=60, burst=2), max_running=2)

    one, other = await claim(store, worker)
    assert (await take(store, worker)).held_back
    await settle(store, one, Event.SUCCEED)
    assert len(await claim(store, worker)) == 1
    await settle(store, other, Event.SUCCEED)
    assert await claim(store, worker) == []
    virtual_time.advance(60)
    assert len(await claim(store, worker)) == 1
    virtual_time.advance(600)
    assert await claim(store, worker) == []


async def test_a_raised_rate(store: Store, virtual_time: VirtualTime) -> None:
    """It counts at once, however long the old one would have let wait, and rings."""
    await store.enqueue([a_task() for _ in range(30)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=3600))
    assert len(await claim(store, worker)) == 1
    async with listening(store, [Bell.WORK]) as ear:
        before = ear.heard[Bell.WORK]
        await store.configure("default", rate=Rate(60, per=60))
        await ear.hears(Bell.WORK, after=before)

    virtual_time.advance(1)
    assert len(await claim(store, worker)) == 1
    await store.configure("default", rate=None)
    assert len(await claim(store, worker, 5)) == 5
    await store.configure("default", rate=Rate(60, per=60))
    virtual_time.advance(1)
    assert len(await claim(store, worker)) == 1


async def test_a_rate_that_changes(store: Store, virtual_time: VirtualTime) -> None:
    """From its change on no window has more than the new rate allows."""
    rng = random.Random(0)
    await store.enqueue([a_task() for _ in range(900)], copy=True)
    crew = Crew(store, virtual_time, [await hire(store, lease=1e9)], rng)

    for _ in range(12):
        rate = rng.choice(RATES)
        await store.configure("default", rate=rate)
        before = len(crew.starts)
        for _ in range(15):
            await crew.claim(20)
            await crew.settle(Event.SUCCEED, Event.INTERRUPT)
            virtual_time.advance(rng.choice([0, 1, rate.interval, rate.per]))
        crew.check(rate, since=before)
        assert len(crew.starts) > before


async def test_a_rate_of_each_key(store: Store, virtual_time: VirtualTime) -> None:
    """Each key has the rate for itself, and tasks without a key have none."""
    await add_keyed(store, [*"abab" * 5, *[None] * 10])
    crew = Crew(store, virtual_time, [await hire(store)], random.Random(0))
    await store.configure("default", rate_per_key=Rate(1, per=60, burst=1))

    claimed = await crew.claim()

    assert len(claimed.claims) == 2 + 2 + 10
    assert claimed.next_due == pytest.approx(60)
    virtual_time.advance(59)
    await add_keyed(store, ["c"])
    assert len((await crew.claim()).claims) == 1
    virtual_time.advance(1)
    assert len((await crew.claim()).claims) == 2
    assert (await crew.claim()).next_due == pytest.approx(60)


async def test_the_key_that_may_start_first(store: Store, virtual_time: VirtualTime) -> None:
    """Of several keys that are held back the first whose time comes is told of."""
    await add_keyed(store, ["b"] * 3)
    worker = await hire(store)
    await store.configure("default", rate_per_key=Rate(1, per=60))
    assert (await take(store, worker)).next_due == pytest.approx(60)
    virtual_time.advance(20)
    await add_keyed(store, ["a"] * 3)

    claimed = await take(store, worker)

    assert len(claimed.claims) == 1
    assert claimed.next_due == pytest.approx(40)
    virtual_time.advance(40)
    claimed = await take(store, worker)
    assert len(claimed.claims) == 1
    assert claimed.next_due == pytest.approx(20)


async def test_a_limit_and_a_rate_of_each_key(store: Store, virtual_time: VirtualTime) -> None:
    """Of each key both hold: what its rate allows waits for its limit, and the other way round."""
    await add_keyed(store, "aaaaaaaa")
    worker = await hire(store)
    await store.configure("default", rate_per_key=Rate(1, per=60, burst=2), max_running_per_key=2)

    one, other = await claim(store, worker)
    await settle(store, one, Event.SUCCEED)
    assert len(await claim(store, worker)) == 1
    await settle(store, other, Event.SUCCEED)
    assert await claim(store, worker) == []
    virtual_time.advance(60)
    assert len(await claim(store, worker)) == 1


@pytest.mark.parametrize(("of_queue", "of_key"), [(60, 20), (20, 60)])
async def test_a_queue_and_a_key_that_are_held_back(
    store: Store, virtual_time: VirtualTime, of_queue: int, of_key: int
) -> None:
    """A worker that claims at the instants it is told of is there when both rates allow a start."""
    await add_keyed(store, "aa")
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=of_queue), rate_per_key=Rate(1, per=of_key))
    claimed = await take(store, worker)
    begin = virtual_time.now()

    for _ in range(2):
        assert claimed.next_due
        virtual_time.advance(claimed.next_due)
        claimed = await take(store, worker)
        if claimed.claims:
            break

    assert len(claimed.claims) == 1
    assert (virtual_time.now() - begin).total_seconds() == 60


async def test_no_window_of_a_key_has_more(store: Store, virtual_time: VirtualTime) -> None:
    """Neither any key nor the queue as a whole is above its rate, over two types of tasks."""
    rng, rate, of_key = random.Random(0), Rate(20, per=60, burst=5), Rate(4, per=60, burst=2)
    keys = [rng.choice([None, *"abc"]) for _ in range(400)]
    known = await add_keyed(store, keys[:200]) | await add_keyed(
        store, keys[200:], task_type="other"
    )
    workers = [await hire(store, lease=1e9) for _ in range(2)]
    crew = Crew(store, virtual_time, workers, rng, known)
    await store.configure("default", rate=rate, rate_per_key=of_key)

    for _ in range(100):
        virtual_time.advance(rng.choice([0, 0, 1, 3, 7, 30, 60]))
        await crew.claim(rng.choice([1, 3, 100]))
        await crew.settle(Event.SUCCEED, Event.INTERRUPT)

    crew.check(rate)
    for key in "abc":
        crew.check(of_key, key)
        assert len(crew.started(key)) > of_key.count


async def test_a_rate_beside_others(store: Store) -> None:
    """A queue, or a key, that is held back keeps no other waiting, however urgent its tasks are."""
    await add_keyed(store, ["a"] * 5, priority=9)
    await add_keyed(store, ["a"] * 5, queue="rate", priority=9)
    await add_keyed(store, ["b", None])
    worker = await hire(store)
    await store.configure("default", rate_per_key=Rate(1, per=60))
    await store.configure("rate", rate=Rate(1, per=60))

    assert len(await claim(store, worker, 2)) == 2
    assert len(await claim(store, worker, 9)) == 2


async def test_a_pause_uses_nothing_up(store: Store, virtual_time: VirtualTime) -> None:
    """While a queue is paused its rate has no instant, and afterwards all of its burst."""
    await store.enqueue([a_task() for _ in range(9)])
    worker = await hire(store)
    await store.configure("default", rate=Rate(1, per=60, burst=2))
    assert len(await claim(store, worker)) == 3
    await store.configure("default", paused=True)

    assert (await take(store, worker)).next_due is None
    virtual_time.advance(180)
    assert await claim(store, worker) == []
    await store.configure("default", paused=False)
    assert len(await claim(store, worker)) == 3


@pytest.mark.parametrize("which", ["rate", "rate_per_key"])
async def test_nothing_is_held_ahead(store: Store, which: str) -> None:
    """Under a rate a claim takes what starts at once; more of it comes when a slot is free."""
    await add_keyed(store, "abcdefghi")
    worker = await hire(store)
    rate = Rate(1000, per=60, burst=100)
    await store.configure("default", **{which: rate}, max_running=1_000_000)  # type: ignore[arg-type]  # one of two names

    claimed = await take(store, worker, 5, at_once=2)

    assert len(claimed.claims) == 2
    assert claimed.held_back
    assert len(await claim(store, worker, 9, at_once=7)) == 7


async def test_many_at_once(store: Store, virtual_time: VirtualTime) -> None:
    """Workers that claim at the same moment together start what the rate allows, and all of it."""
    await store.enqueue([a_task() for _ in range(100)], copy=True)
    await store.configure("default", rate=Rate(10, per=60, burst=9))
    taken: list[int] = []

    async def work() -> None:
        worker = await hire(store, lease=1e9)
        taken.extend([len(await claim(store, worker, 3)) for _ in range(4)])

    for round_ in range(1, 4):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(work)

        assert sum(taken) == 10 * round_
        assert await count(store, State.RUNNING) == 10 * round_
        virtual_time.advance(60)
