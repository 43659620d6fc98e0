"""What the stores count: attempts by what became of them, and what is due."""

from __future__ import annotations

import pytest

from nursery_queue._core._counters import Counters
from nursery_queue._core._model import Held, Outcome, QueueSlots, Settlement
from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
    LEASE,
    TYPE,
    a_task,
    add,
    claim,
    claim_one,
    claimed_once,
    hire,
    settle,
    state,
)


async def attempt(store: Store, outcome: Outcome, event: Event, queue: str = "default") -> int:
    """Let one attempt of a new task end; return the task's id."""
    task_id, worker = await add(store, queue=queue), await hire(store)
    (only,) = await claim(store, worker, queue_slots=[QueueSlots(queue=queue, slots=1)])
    await settle(store, only, event, outcome=outcome, delay=DAY)
    return task_id


async def counted(store: Store) -> Counters:
    return (await store.stats()).total


WAYS = [
    (Outcome.SUCCEEDED, Event.SUCCEED, Counters(succeeded=1)),
    (Outcome.FAILED, Event.FAIL, Counters(failed=1)),
    (Outcome.FAILED, Event.RETRY, Counters(retries=1)),
    (Outcome.FAILED, Event.CANCEL, Counters(failed=1)),  # nobody wants another
    (Outcome.TIMED_OUT, Event.FAIL, Counters(failed=1)),
    (Outcome.TIMED_OUT, Event.RETRY, Counters(retries=1)),
    (Outcome.CANCELLED, Event.CANCEL, Counters(cancelled=1)),
    (Outcome.LOST, Event.LOSE, Counters(lost=1, backlog=1)),
    (Outcome.LOST, Event.FAIL, Counters(lost=1, failed=1)),
    (Outcome.INTERRUPTED, Event.INTERRUPT, Counters(backlog=1)),
    (Outcome.INTERRUPTED, Event.CANCEL, Counters()),
    (Outcome.SNOOZED, Event.SNOOZE, Counters()),
    (None, Event.INTERRUPT, Counters(backlog=1)),
]


@pytest.mark.parametrize(
    ("outcome", "event", "counters"), WAYS, ids=lambda value: str(value or "unstarted")
)
async def test_what_an_attempt_counts_as(
    store: Store, virtual_time: VirtualTime, outcome: Outcome, event: Event, counters: Counters
) -> None:
    """Each way an attempt can end goes into the counters as it is documented."""
    await attempt(store, outcome, event)

    assert await counted(store) == counters


async def test_counters_by_queue(store: Store, virtual_time: VirtualTime) -> None:
    """Every queue has its counters, and the statistics as a whole have their sum."""
    await attempt(store, Outcome.SUCCEEDED, Event.SUCCEED, "a")
    await attempt(store, Outcome.FAILED, Event.RETRY, "a")
    await attempt(store, Outcome.SUCCEEDED, Event.SUCCEED, "b")
    await attempt(store, Outcome.TIMED_OUT, Event.FAIL, "b")
    await attempt(store, Outcome.LOST, Event.LOSE, "b")
    stats = await store.stats()

    assert stats.counters == {
        "a": Counters(succeeded=1, retries=1),
        "b": Counters(succeeded=1, failed=1, lost=1, backlog=1),
    }
    assert (stats.completed, stats.succeeded, stats.failed, stats.cancelled) == (4, 2, 1, 0)
    assert (stats.retries, stats.lost, stats.running, stats.backlog) == (1, 1, 0, 1)
    assert (stats.failure_rate, stats.permanent_failure_rate) == (0.5, 0.3333)


async def test_nothing_to_count(store: Store) -> None:
    """Without a task there is no queue, all counts are 0, and so are the rates."""
    stats = await store.stats()

    assert (stats.counters, stats.total, stats.failure_rate) == ({}, Counters(), 0)


async def test_what_has_been_counted_stays(store: Store, virtual_time: VirtualTime) -> None:
    """A failure for good stays one when the task goes again; a retry that is called off, too."""
    failed = await attempt(store, Outcome.FAILED, Event.FAIL)
    waiting = await attempt(store, Outcome.FAILED, Event.RETRY)
    await store.retry(failed)
    await store.cancel(waiting)

    assert await counted(store) == Counters(failed=1, retries=1, backlog=1)

    await settle(store, await claim_one(store, await hire(store)), Event.SUCCEED)

    assert await counted(store) == Counters(succeeded=1, failed=1, retries=1)
    assert [each.final for each in await store.attempts(failed)] == [True, True]
    assert [each.final for each in await store.attempts(waiting)] == [False]


async def test_what_is_not_kept_is_not_counted(store: Store) -> None:
    """What is deleted at its end is in no count."""
    known = await claimed_once(store)
    await settle(store, known.fence, Event.SUCCEED, keep_for=0)

    assert await counted(store) == Counters()


async def test_running_and_due(store: Store, virtual_time: VirtualTime) -> None:
    """What is due and waits is backlog, made ready or not; what is due later is not."""
    await store.enqueue([a_task() for _ in range(3)])
    await store.enqueue([a_task(run_after=60), a_task(run_after=61)])
    await claim_one(store, await hire(store))

    assert await counted(store) == Counters(running=1, backlog=2)

    virtual_time.advance(60)

    assert await counted(store) == Counters(running=1, backlog=3)

    await store.promote()

    assert await counted(store) == Counters(running=1, backlog=3)


async def test_the_backlog_of_a_worker(store: Store, virtual_time: VirtualTime) -> None:
    """Due tasks of a worker's queues and types are counted, up to a limit."""
    await store.enqueue([a_task(queue=queue) for queue in "aaabbc"])
    await store.enqueue([a_task(queue="a", run_after=60), a_task(queue="b", task_type="other")])

    async def backlog(*queues: str, types: str = TYPE, most: int = 100) -> int:
        return await store.backlog([types], queues=queues or None, most=most)

    assert await backlog() == 6
    assert await backlog("a") == 3
    assert await backlog("b", "a", "d") == 5
    assert await backlog("b", types="other") == 1
    assert await backlog(types="nobody's") == 0
    assert await backlog(most=4) == 4
    assert await backlog("a", most=2) == 2

    virtual_time.advance(60)

    assert await backlog("a") == 4  # due, although nobody has made it ready
    assert await backlog("a", most=3) == 3
    assert await backlog("b") == 2


async def test_a_sweep_tells(store: Store, virtual_time: VirtualTime) -> None:
    """Of each attempt that a sweep settles it tells who held it, for how long, and what follows."""
    last = MAX_LOST - 1
    once = await claimed_once(store, queue="q")
    often = await claimed_once(store, priority=1)
    await settle(store, often.fence, Event.LOSE, lost=last, attempt=0)
    (again,) = await claim(store, often.worker)
    virtual_time.advance(LEASE + 2)
    told: list[tuple[Held, Settlement]] = []
    swept = await store.sweep(
        max_lost=MAX_LOST, tell=lambda held, settlement: told.append((held, settlement))
    )

    assert swept == 2
    assert [(held.fence, held.worker_id, held.task_type, held.queue) for held, _ in told] == [
        (once.fence, once.worker, TYPE, "q"),
        (again.fence, often.worker, TYPE, "default"),
    ]
    assert [held.age for held, _ in told] == [LEASE + 2] * 2
    assert [(each.outcome, each.state) for _, each in told] == [
        (Outcome.LOST, State.READY),
        (Outcome.LOST, State.FAILED),
    ]
    assert await state(store, often.id) is State.FAILED
    assert await counted(store) == Counters(lost=3, failed=1, backlog=1)


async def test_a_sweep_tells_once(store: Store, virtual_time: VirtualTime) -> None:
    """What has been swept is told by the sweep that did it, and not again."""
    known = await claimed_once(store)
    virtual_time.advance(LEASE + 1)
    told: list[int] = []
    for _ in range(2):
        await store.sweep(max_lost=MAX_LOST, tell=lambda held, _: told.append(held.fence.task_id))

    assert told == [known.id]
