"""What can be asked: states, lists, counts, and the verbs of a closed store."""

from __future__ import annotations

import datetime as dt
import uuid

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nursery_queue._core._errors import Closed
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import UnknownTypeStats, WorkerInfo, WorkerStatus
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
    LEASE,
    TYPE,
    a_task,
    add,
    brought_to,
    claim,
    claimed_once,
    ends,
    hire,
    settle,
    status,
)


async def test_states_are_in_the_order_asked(store: Store) -> None:
    """One answer an id, None where there is no such task, also for ids asked twice."""
    first, second = await add(store), await add(store)
    found = await store.status_many([second, 10**12, first, second, -1])

    assert [one and one.id for one in found] == [second, None, first, second, None]
    assert await store.status_many([]) == []


async def test_every_state_is_shown(store: Store) -> None:
    """A task is shown in the state that it is in, one by one and in lists."""
    # Each outranks those before it, so it is the one that is claimed.
    tasks = [(goal, await brought_to(store, goal, priority=i)) for i, goal in enumerate(State)]
    listed = {one.id: one.state for one in await store.list_tasks(TaskFilter())}
    for goal, task in tasks:
        assert listed[task.id] is goal
        assert (await status(store, task.id)).state is goal


async def test_pages(store: Store) -> None:
    """A list is newest first, and goes on below the last id seen."""
    refs = await store.enqueue([a_task() for _ in range(7)])
    pages: list[list[int]] = []
    after: int | None = None
    while page := await store.list_tasks(TaskFilter(limit=3, after=after)):
        pages.append([one.id for one in page])
        after = pages[-1][-1]

    assert [len(page) for page in pages] == [3, 3, 1]
    assert [i for page in pages for i in page] == [ref.id for ref in reversed(refs)]


async def test_filters(store: Store) -> None:
    """A list has what fits all that was asked."""
    a = await add(store, queue="a")
    b = await add(store, queue="b", run_after=60)
    c = await add(store, queue="a", task_type="other", run_after=60)
    await store.cancel(a)

    async def ids(**which: Any) -> list[int]:
        return [one.id for one in await store.list_tasks(TaskFilter(**which))]

    assert await ids() == [c, b, a]
    assert await ids(queue="a") == [c, a]
    assert await ids(task_type=TYPE) == [b, a]
    assert await ids(state=State.SCHEDULED) == [c, b]
    assert await ids(state=State.CANCELLED) == [a]
    assert await ids(state=State.RUNNING) == []
    assert await ids(queue="a", state=State.SCHEDULED, task_type="other") == [c]
    assert await ids(queue="a", after=c) == [a]
    assert await ids(limit=1) == [c]
    assert await ids(limit=0) == []


async def test_counts(store: Store) -> None:
    """Tasks are counted by queue and state; what is not there is not mentioned."""
    assert (await store.stats()).queues == {}

    await store.enqueue([a_task(queue="b") for _ in range(3)])
    await add(store, queue="a", run_after=60)
    worker = await hire(store)
    (first, second) = await claim(store, worker, 2)
    await settle(store, first, Event.SUCCEED)
    stats = await store.stats()

    assert stats.queues == {
        "a": {State.SCHEDULED: 1},
        "b": {State.READY: 1, State.RUNNING: 1, State.SUCCEEDED: 1},
    }

    await settle(store, second, Event.FAIL, keep_for=0)

    assert (await store.stats()).queues["b"] == {State.READY: 1, State.SUCCEEDED: 1}


async def test_types_that_nobody_knows(store: Store, virtual_time: VirtualTime) -> None:
    """Ready tasks whose type no live worker knows are counted, and since when there are any."""
    began = virtual_time.now()
    await store.enqueue([a_task(task_type=t) for t in ("y", TYPE)])
    await add(store, task_type="z", run_after=600)
    virtual_time.advance(3)
    await store.enqueue([a_task(task_type=t) for t in ("x", "x")])
    await hire(store)
    await hire(store, task_types=["y"], lease=LEASE * 2)
    x = UnknownTypeStats(2, began + dt.timedelta(seconds=3))

    assert (await store.stats()).unknown_task_types == {"x": x}

    virtual_time.advance(LEASE + 1)
    await add(store, task_type="x", run_at=began - dt.timedelta(days=1))
    x = UnknownTypeStats(3, began - dt.timedelta(days=1))

    assert (await store.stats()).unknown_task_types == {"x": x, TYPE: UnknownTypeStats(1, began)}


async def test_what_is_parked_is_counted(store: Store, virtual_time: VirtualTime) -> None:
    """That a ready task of an unknown type has been put out of the way makes no difference."""
    await store.enqueue([a_task(task_type=t, run_after=2) for t in ("x", "x", TYPE)])
    await hire(store, lease=DAY)
    virtual_time.advance(5)
    await store.promote()
    before = await store.stats()
    await store.park()
    since = virtual_time.now() - dt.timedelta(seconds=3)

    assert await store.stats() == before
    assert before.unknown_task_types == {"x": UnknownTypeStats(2, since)}
    assert (before.backlog, before.queues) == (3, {"default": {State.READY: 3}})


async def test_workers(store: Store, virtual_time: VirtualTime) -> None:
    """A registered worker is listed with what it said, whether it lives and what it holds."""
    info = WorkerInfo(
        id=uuid.uuid4(),
        name="n",
        host="host",
        pid=2**22,
        task_types=["b", "a"],
        lease=LEASE,
        queues=["q", "p"],
    )
    await store.register(info)
    (listed,) = (await store.stats()).workers
    began = listed.started_at

    assert listed == WorkerStatus(
        id=info.id,
        name="n",
        host="host",
        pid=2**22,
        queues=["q", "p"],
        task_types=["b", "a"],
        started_at=began,
        heartbeat_at=began,
        draining=False,
        alive=True,
        running=0,
    )

    await store.enqueue([a_task() for _ in range(2)])
    await claim(store, info.id)
    virtual_time.advance(5)
    await store.heartbeat(info.id, draining=True)
    (listed,) = (await store.stats()).workers

    assert (listed.running, listed.draining, listed.queues) == (2, True, ["q", "p"])
    assert (listed.heartbeat_at - began).total_seconds() == 5

    virtual_time.advance(LEASE + 1)

    assert [one.alive for one in (await store.stats()).workers] == [False]


async def test_a_worker_for_all_queues(store: Store, virtual_time: VirtualTime) -> None:
    """A worker that did not name its queues serves all; workers are listed by age."""
    first = await hire(store)
    virtual_time.advance(1)
    second = await hire(store, queues=[])
    listed = (await store.stats()).workers

    assert [(one.id, one.queues) for one in listed] == [(first, None), (second, [])]


async def test_the_store_is_in_shape(store: Store) -> None:
    """A store that can be used passes its own check."""
    await store.check()


NOBODY = uuid.UUID(int=0)
VERBS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "check": lambda store: store.check(),
    "enqueue": lambda store: store.enqueue([a_task()]),
    "cancel": lambda store: store.cancel(1),
    "retry": lambda store: store.retry(1),
    "status_many": lambda store: store.status_many([1]),
    "attempts": lambda store: store.attempts(1),
    "list_tasks": lambda store: store.list_tasks(TaskFilter()),
    "workers": lambda store: store.workers(),
    "cancel_some": lambda store: store.cancel_some(CancelFilter(), after=0, upto=1, dry_run=True),
    "stats": lambda store: store.stats(),
    "register": hire,
    "heartbeat": lambda store: store.heartbeat(NOBODY, draining=False),
    "deregister": lambda store: store.deregister(NOBODY),
    "claim": lambda store: store.claim(NOBODY, [TYPE], limit=1),
    "give_back_all_but": lambda store: store.give_back_all_but(NOBODY, set()),
    "promote": lambda store: store.promote(),
    "sweep": lambda store: store.sweep(max_lost=1),
    "backlog": lambda store: store.backlog([TYPE], queues=None, most=1),
    "prune": lambda store: store.prune(),
    "transaction": lambda store: store.transaction().__aenter__(),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_closed_store(store: Store, verb: str) -> None:
    """After closing, which can be done twice, every verb raises `Closed`."""
    await store.check()
    await store.aclose()
    await store.aclose()
    with pytest.raises(Closed):
        await VERBS[verb](store)


async def test_settling_in_a_closed_store(store: Store) -> None:
    """Nothing can be settled after closing."""
    task = await claimed_once(store)
    await store.aclose()
    with pytest.raises(Closed):
        await store.settle([ends(task.fence, Event.SUCCEED)])
