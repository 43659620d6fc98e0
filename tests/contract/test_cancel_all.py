"""Cancelling all tasks that fit: a walk through them by id, page by page."""

from __future__ import annotations

import datetime as dt
import functools
import json

from collections.abc import Awaitable, Callable

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._states import Event, State
from nursery_queue._memory import _client_verbs
from nursery_queue._pg import _postgres_store as _store
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    TYPE,
    a_task,
    add,
    brought_to,
    claim,
    claim_one,
    claimed_once,
    count,
    ends,
    hire,
    state,
    status,
)


@pytest.fixture
def client(store: Store) -> nq.Client:
    return nq.Client(store)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it many steps to walk through few tasks."""
    monkeypatch.setattr(_client_verbs, "PAGE", 10)
    monkeypatch.setattr(_store, "WALK", 10)


async def states(store: Store) -> list[State]:
    return [task.state for task in await store.list_tasks(TaskFilter(limit=10_000))]


async def test_what_fits(store: Store, client: nq.Client, virtual_time: VirtualTime) -> None:
    """Queue, type and instant must all fit; a task created at the very instant does not."""
    old = await add(store, queue="a")
    virtual_time.advance(1)
    new = await add(store, queue="a")
    other = await add(store, queue="a", task_type="other")
    elsewhere = await add(store, queue="b")
    instant = (await status(store, new)).created_at

    assert await client.cancel_all(queue="a", task_type="nothing") == 0
    assert await client.cancel_all(before=instant - dt.timedelta(seconds=1)) == 0
    assert await client.cancel_all(before=instant) == 1
    assert await state(store, old) is State.CANCELLED
    assert await client.cancel_all("a", TYPE, instant + dt.timedelta(microseconds=1)) == 1
    assert await state(store, new) is State.CANCELLED
    assert await client.cancel_all(task_type="other") == 1
    assert await state(store, other) is State.CANCELLED
    assert await state(store, elsewhere) is State.READY
    assert await client.cancel_all(queue="b") == 1
    assert await state(store, elsewhere) is State.CANCELLED


async def test_every_state(store: Store, client: nq.Client) -> None:
    """What waits never starts, what runs is asked for, what has ended is left alone."""
    running = await brought_to(store, State.RUNNING)
    ended = [await brought_to(store, goal) for goal in State if goal.is_final]
    waiting = [await brought_to(store, goal) for goal in (State.SCHEDULED, State.READY)]
    before = await store.status_many([task.id for task in ended])

    assert await client.cancel_all(everything=True) == 3
    assert await store.status_many([task.id for task in ended]) == before
    assert [await state(store, task.id) for task in waiting] == [State.CANCELLED] * 2

    beat = await store.heartbeat(running.worker, draining=False)

    assert (await status(store, running.id)).cancel_requested
    assert [(ask.fence, ask.interrupt) for ask in beat.cancel_requests] == [(running.fence, True)]


async def test_a_task_that_is_out_of_the_way(store: Store, client: nq.Client) -> None:
    """A ready task of a type that nobody knows is cancelled like any other."""
    task_id = await add(store, task_type="strange")
    await hire(store)
    await store.park()

    assert await client.cancel_all(task_type="strange") == 1
    assert await state(store, task_id) is State.CANCELLED


async def test_again(store: Store, client: nq.Client) -> None:
    """A second time there is nothing but what still runs, which is asked for again."""
    await claimed_once(store)
    await store.enqueue([a_task() for _ in range(3)])

    assert await client.cancel_all(everything=True) == 4
    assert await client.cancel_all(everything=True) == 1


async def test_dry_run(store: Store, client: nq.Client) -> None:
    """A dry run counts what would be cancelled, and changes nothing."""
    await brought_to(store, State.RUNNING)
    await brought_to(store, State.SUCCEEDED)
    await store.enqueue([a_task(run_after=60), a_task(queue="other")])
    before = await store.list_tasks(TaskFilter())

    assert await client.cancel_all(everything=True, dry_run=True) == 3
    assert await client.cancel_all(queue="other", dry_run=True) == 1
    assert await store.list_tasks(TaskFilter()) == before


async def test_nothing_there(client: nq.Client) -> None:
    """In an empty store there is nothing to cancel."""
    assert await client.cancel_all(everything=True) == 0
    assert await client.cancel_all(everything=True, dry_run=True) == 0


async def test_what_is_meant(store: Store, client: nq.Client) -> None:
    """A call that does not say which tasks, or says it wrongly, is refused and does nothing."""
    task_id = await add(store)
    with pytest.raises(ValueError, match=r"everything.*must be asked for"):
        await client.cancel_all()
    with pytest.raises(ValueError, match="alone"):
        await client.cancel_all(queue="default", everything=True)
    with pytest.raises(ValueError, match=r"before.*timezone-aware"):
        await client.cancel_all(before=dt.datetime(2020, 1, 1))  # noqa: DTZ001  # that is the point
    with pytest.raises(ValueError, match="queue"):
        await client.cancel_all(queue="")

    assert await state(store, task_id) is State.READY


async def test_by_task_type(store: Store, client: nq.Client, app: nq.App) -> None:
    """A task type can be given as such."""

    @app.task(name=TYPE)
    async def work() -> None: ...

    await add(store)
    await add(store, task_type="other")

    assert await client.cancel_all(task_type=work) == 1
    assert [task.state for task in await client.list_tasks(task_type=work)] == [State.CANCELLED]
    assert await count(store, State.READY) == 1


async def test_each_is_cancelled_in_every_respect(store: Store, client: nq.Client) -> None:
    """Its key is free, what asked to be told is told, and what is not to be kept is gone."""
    tells = json.dumps({"task_type": "tell"})
    keyed, told, gone = [
        ref.id
        for ref in await store.enqueue(
            [
                a_task(dedup_key="k"),
                a_task(on_complete=tells, context='"c"'),
                a_task(keep_for=0, on_complete=tells),
            ]
        )
    ]

    assert await client.cancel_all(task_type=TYPE) == 3
    assert [await state(store, task_id) for task_id in (keyed, told, gone)] == [
        State.CANCELLED,
        State.CANCELLED,
        None,
    ]
    assert (await store.enqueue([a_task(dedup_key="k")]))[0].created

    tellers = [
        task
        for task in await client.list_tasks(task_type="tell", payloads=True)
        if task.state is State.READY
    ]

    assert sorted(task.completes or 0 for task in tellers) == [told, gone]
    assert {task.params["result"]["status"] for task in tellers} == {"cancelled"}


@pytest.mark.parametrize("dry_run", [False, True])
async def test_pages(store: Store, client: nq.Client, small_pages: None, dry_run: bool) -> None:
    """However many pages it takes, each task is looked at once."""
    refs = await store.enqueue([a_task(queue=f"q{i % 2}") for i in range(95)])

    assert await client.cancel_all(queue="q0", dry_run=dry_run) == 48

    found = await store.status_many(refs_ids(refs))
    expected = State.READY if dry_run else State.CANCELLED

    assert {task.state for task in found[0::2] if task} == {expected}
    assert {task.state for task in found[1::2] if task} == {State.READY}


def refs_ids(refs: list[nq.TaskRef]) -> list[int]:
    return [ref.id for ref in refs]


async def test_a_page(store: Store, small_pages: None) -> None:
    """A page begins above the id it is given, ends at the one that was agreed, and says so."""
    ids = refs_ids(await store.enqueue([a_task() for _ in range(25)]))
    page = functools.partial(store.cancel_some, CancelFilter(), upto=ids[21], dry_run=False)

    assert await page(after=ids[2]) == (ids[12], 10)
    assert await page(after=ids[12]) == (ids[21], 9)
    assert await page(after=ids[21]) == (None, 0)
    assert await count(store, State.READY) == 6


async def test_what_comes_later_is_not_touched(
    store: Store, client: nq.Client, small_pages: None
) -> None:
    """It ends, however fast tasks are enqueued meanwhile, and those are left alone."""
    ids = refs_ids(await store.enqueue([a_task() for _ in range(300)]))
    later: list[int] = []
    began, ended = trio.Event(), trio.Event()

    async def feed() -> None:
        while await state(store, ids[0]) is State.READY:
            await trio.lowlevel.checkpoint()
        began.set()
        while not ended.is_set():
            later.extend(refs_ids(await store.enqueue([a_task() for _ in range(20)])))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)

        assert await client.cancel_all(queue="default") == 300

        ended.set()

    assert began.is_set()
    assert later
    assert await count(store, State.CANCELLED) == 300
    assert await count(store, State.READY) == len(later)


async def test_tasks_that_move_meanwhile(
    store: Store, client: nq.Client, small_pages: None
) -> None:
    """Every task is cancelled or asked for, however fast tasks change places meanwhile."""
    refs = await store.enqueue([a_task() for _ in range(400)])
    worker = await hire(store)
    ended = trio.Event()

    async def churn() -> None:
        while not ended.is_set():
            for event in (Event.INTERRUPT, Event.RETRY):
                claims = await claim(store, worker, 40)
                await store.settle([ends(one, event, attempt=0, delay=0) for one in claims])
            await store.promote()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(churn)
        for _ in range(20):
            await store.promote()

        assert await client.cancel_all(everything=True) == 400

        ended.set()

    for task in await store.status_many(refs_ids(refs)):
        assert task is not None
        assert task.state is State.CANCELLED or task.cancel_requested


async def test_two_at_once(store: Store, client: nq.Client, small_pages: None) -> None:
    """Two of them at the same time do not get in each other's way, nor do single cancels."""
    refs = await store.enqueue([a_task(run_after=60 * (i % 2)) for i in range(300)])
    counts: list[int] = []

    async def cancel(verb: Callable[[], Awaitable[int]]) -> None:
        counts.append(await verb())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(cancel, functools.partial(client.cancel_all, everything=True))
        for ref in reversed(refs[::7]):
            nursery.start_soon(cancel, functools.partial(client.cancel, ref))

    assert sum(counts) == 300
    assert set(await states(store)) == {State.CANCELLED}


async def test_a_worker_hears_of_it(store: Store, client: nq.Client) -> None:
    """A worker whose tasks are cancelled finds them all in its next heartbeat."""
    await store.enqueue([a_task() for _ in range(30)])
    worker = await hire(store)
    claims = await claim(store, worker, 20)

    assert await client.cancel_all(task_type=TYPE) == 30

    beat = await store.heartbeat(worker, draining=False)

    assert {ask.fence for ask in beat.cancel_requests} == {one.fence for one in claims}
    assert await store.settle([ends(one, Event.CANCEL) for one in claims]) == {}
    assert set(await states(store)) == {State.CANCELLED}


async def test_a_retried_task_goes_on(store: Store, client: nq.Client) -> None:
    """A task that was cancelled with others can be made ready again."""
    task_id = await add(store)
    await client.cancel_all(everything=True)

    assert await store.retry(task_id)
    assert (await claim_one(store, await hire(store))).fence.task_id == task_id
