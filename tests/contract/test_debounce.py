"""A task that waits for the last of many calls (`debounce`)."""

from __future__ import annotations

import contextlib
import datetime as dt

from typing import Any

import pytest
import trio

from nursery_queue._core._debounce import Debounce
from nursery_queue._core._declaration import AS_DECLARED, KEY_AS_DECLARED, Declaration
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import Claim, NewTask, TaskRef
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    TYPE,
    a_task,
    claim,
    count,
    ends,
    hire,
    settle,
    state,
    status,
)


WAIT = Debounce(10)
CAPPED = Debounce(10, max_wait=25)


def call(number: int = 1, **changes: Any) -> NewTask:
    usual: dict[str, Any] = {"params": f'{{"n": {number}}}', "dedup_key": "k", "debounce": WAIT}
    return a_task(**usual | changes)


async def enqueue(store: Store, task: NewTask) -> TaskRef:
    (ref,) = await store.enqueue([task])
    return ref


async def due_in(store: Store, task_id: int, since: dt.datetime) -> float:
    return ((await status(store, task_id)).run_at - since).total_seconds()


async def promoted(store: Store, worker: Any) -> list[Claim]:
    """Claim whatever is due by now."""
    await store.heartbeat(worker, draining=False)
    await store.promote()
    return await claim(store, worker)


async def test_the_last_call_runs(store: Store, virtual_time: VirtualTime) -> None:
    """Each call replaces the one before and starts the wait anew; the last one runs, once."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1))
    for number in (2, 3, 4):
        await trio.sleep(9)

        assert await promoted(store, worker) == []
        assert await enqueue(store, call(number)) == TaskRef(first.id, created=False)

    await trio.sleep(9.9)

    assert await promoted(store, worker) == []

    await trio.sleep(0.2)
    (one,) = await promoted(store, worker)

    assert (one.fence.task_id, one.params) == (first.id, '{"n": 4}')
    assert first.created
    assert await count(store) == 1


async def test_max_wait(store: Store, virtual_time: VirtualTime) -> None:
    """However many calls come, it is due so long after the first, with what was said last."""
    del virtual_time
    worker = await hire(store)
    await enqueue(store, call(1, debounce=CAPPED))
    for number in (2, 3):
        await trio.sleep(9)
        await enqueue(store, call(number, debounce=CAPPED))
    await trio.sleep(6.9)

    assert await promoted(store, worker) == []

    await trio.sleep(0.2)
    ref = await enqueue(store, call(4, debounce=CAPPED))
    (one,) = await promoted(store, worker)

    assert not ref.created
    assert one.params == '{"n": 4}'


@pytest.mark.parametrize("debounce", [WAIT, CAPPED])
async def test_a_ready_task_waits_again(
    store: Store, virtual_time: VirtualTime, debounce: Debounce
) -> None:
    """A task that is due, but has not started, is replaced too; after `max_wait` it stays due."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1, debounce=debounce))
    await trio.sleep(30)
    await store.promote()

    assert await state(store, first.id) is State.READY

    changed = call(2, debounce=debounce, queue="other", priority=5, key="c")
    ref = await enqueue(store, changed)
    found = await status(store, first.id)

    assert ref == TaskRef(first.id, created=False)
    assert (found.queue, found.priority, found.key) == ("other", 5, "c")

    claims = await promoted(store, worker)
    if debounce is WAIT:
        assert claims == []

        await trio.sleep(10.1)
        claims = await promoted(store, worker)
    (one,) = claims

    assert (one.params, one.queue) == ('{"n": 2}', "other")


async def test_a_parked_task_waits_again(store: Store, virtual_time: VirtualTime) -> None:
    """A task of a type that no worker knows is replaced as well, and is found under a new type."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1, task_type="odd"))
    await trio.sleep(10.1)
    await store.promote()
    await store.heartbeat(worker, draining=False)
    await store.park()
    await enqueue(store, call(2))
    await trio.sleep(10.1)
    (one,) = await promoted(store, worker)

    assert (one.fence.task_id, one.task_type, one.params) == (first.id, TYPE, '{"n": 2}')


async def test_what_is_left_out_is_as_declared(store: Store, virtual_time: VirtualTime) -> None:
    """A call that does not say queue, priority and key gets them as declared, not as before."""
    del virtual_time
    declared = Declaration(name=TYPE, queue="mail", priority=3, key_parameter="n")
    await hire(store, declared=[declared])
    left: dict[str, Any] = {"queue": None, "priority": None, "key": KEY_AS_DECLARED}
    first = await enqueue(store, call(1, queue="a", priority=9, key="x", timeout=5))
    await enqueue(store, call(2, **left, on_complete=AS_DECLARED, timeout=7))
    found = await status(store, first.id)

    assert (found.queue, found.priority, found.key) == ("mail", 3, "2")

    await enqueue(store, call(3, key=None))
    found = await status(store, first.id)

    assert (found.queue, found.priority, found.key) == ("default", 0, None)


async def test_the_rest_stays(store: Store, virtual_time: VirtualTime) -> None:
    """What else was said with the first call counts: attempts, time limit, who is told."""
    del virtual_time
    worker = await hire(store)
    first = call(1, timeout=5, max_attempts=2, on_complete='{"task_type": "told"}', context="1")
    await enqueue(store, first)
    await enqueue(store, call(2, timeout=7))
    await trio.sleep(10.1)
    (one,) = await promoted(store, worker)

    assert (one.timeout, one.max_attempts, one.on_complete) == (5, 2, True)


@pytest.mark.parametrize("ended", [None, Event.SUCCEED, Event.RETRY, Event.SNOOZE, Event.INTERRUPT])
async def test_a_task_that_has_started(
    store: Store, virtual_time: VirtualTime, ended: Event | None
) -> None:
    """It does not count, running or about to go again: a new one is made, and has the key."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1))
    await trio.sleep(10.1)
    (one,) = await promoted(store, worker)
    if ended is not None:
        await settle(store, one, ended, delay=1000, attempt=0)
    second = await enqueue(store, call(2))

    assert second.created
    assert second.id != first.id
    assert await enqueue(store, call(3)) == TaskRef(second.id, created=False)
    assert await enqueue(store, call(4, debounce=None)) == TaskRef(second.id, created=False)

    if ended is None:
        await settle(store, one, Event.SUCCEED)

    assert await enqueue(store, call(5)) == TaskRef(second.id, created=False)


async def test_held_ahead_and_given_back(store: Store, virtual_time: VirtualTime) -> None:
    """A task that a worker has only held ahead has not started; while it is held, nobody knows."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1))
    await trio.sleep(10.1)
    await store.promote()
    await store.heartbeat(worker, draining=False)
    (one,) = await claim(store, worker, at_once=0)
    await settle(store, one, Event.INTERRUPT, outcome=None, attempt=0)

    assert await enqueue(store, call(2)) == TaskRef(first.id, created=False)

    await trio.sleep(10.1)
    (again,) = await promoted(store, worker)

    assert again.params == '{"n": 2}'
    assert (await enqueue(store, call(3))).created


async def test_a_suspect_counts_as_started(store: Store, virtual_time: VirtualTime) -> None:
    """A task whose worker died while it was held may have started: a new one is made."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1))
    await trio.sleep(10.1)
    await store.promote()
    await store.heartbeat(worker, draining=False)
    assert len(await claim(store, worker, at_once=0)) == 1
    await store.deregister(worker)
    assert await store.sweep(max_lost=3) == 1

    assert await state(store, first.id) is State.READY
    assert (await enqueue(store, call(2))).created


async def test_after_its_end(store: Store, virtual_time: VirtualTime) -> None:
    """The next call after the end, or a cancel, makes a task of its own."""
    del virtual_time
    first = await enqueue(store, call(1))
    await store.cancel(first.id)
    second = await enqueue(store, call(2))

    assert second.created
    assert await state(store, second.id) is State.SCHEDULED


@pytest.mark.parametrize("one_list", [True, False])
async def test_plain_and_debounced_calls(
    store: Store, virtual_time: VirtualTime, one_list: bool
) -> None:
    """A plain call with the key changes nothing, and a debounced one replaces a plain one."""
    worker = await hire(store)
    start = virtual_time.now()
    calls = [call(1, debounce=None), call(2), call(3, debounce=None), a_task(priority=1)]
    if one_list:
        refs = await store.enqueue(calls)
    else:
        refs = [await enqueue(store, each) for each in calls]

    assert [ref.created for ref in refs] == [True, False, False, True]
    assert {ref.id for ref in refs[:3]} == {refs[0].id}
    assert await due_in(store, refs[0].id, start) == pytest.approx(10, abs=0.01)

    await trio.sleep(10.1)
    found = {one.params for one in await promoted(store, worker)}

    assert found == {'{"n": 2}', "{}"}


async def test_many_in_one_list(store: Store, virtual_time: VirtualTime) -> None:
    """In a list the last call of each key counts, whether there is a task by then or not."""
    del virtual_time
    worker = await hire(store)
    old = await enqueue(store, call(0, dedup_key="old"))
    calls = [call(i, dedup_key=key) for i, key in enumerate(["a", "old", "b", "a", "old"])]
    refs = await store.enqueue(calls)

    assert [ref.created for ref in refs] == [True, False, True, False, False]
    assert [refs[1].id, refs[4].id] == [old.id, old.id]
    assert refs[0].id == refs[3].id

    await trio.sleep(10.1)
    claims = await promoted(store, worker)

    assert {one.fence.task_id: one.params for one in claims} == {
        refs[0].id: '{"n": 3}',
        refs[2].id: '{"n": 2}',
        old.id: '{"n": 4}',
    }


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("own", [True, False])
async def test_in_a_transaction(
    store: Store, virtual_time: VirtualTime, own: bool, commits: bool
) -> None:
    """A transaction replaces its own tasks and others'; undone, the old call runs."""
    del virtual_time
    worker = await hire(store)
    if not own:
        await enqueue(store, call(1))
    refs = list[TaskRef]()
    with contextlib.suppress(ZeroDivisionError):
        async with store.transaction() as tx:
            for number in (2, 3):
                refs += await tx.enqueue([call(number)])
            if not commits:
                raise ZeroDivisionError

    assert [ref.created for ref in refs] == [own, False]

    await trio.sleep(10.1)
    claims = await promoted(store, worker)
    before = [] if own else ['{"n": 1}']

    assert [one.params for one in claims] == (['{"n": 3}'] if commits else before)


async def test_a_running_task_in_a_transaction(store: Store, virtual_time: VirtualTime) -> None:
    """A handler that debounces its own key settles beside the task that it has made."""
    del virtual_time
    worker = await hire(store)
    first = await enqueue(store, call(1))
    await trio.sleep(10.1)
    (one,) = await promoted(store, worker)
    async with store.transaction() as tx:
        (second,) = await tx.enqueue([call(2)])
        await tx.settle(ends(one, Event.SUCCEED))

    assert second.created
    assert await state(store, first.id) is State.SUCCEEDED
    assert await enqueue(store, call(3)) == TaskRef(second.id, created=False)


async def test_a_shorter_wait_rings(store: Store, virtual_time: VirtualTime) -> None:
    """A call with a shorter wait is due earlier."""
    start = virtual_time.now()
    first = await enqueue(store, call(1, debounce=Debounce(1000)))
    await enqueue(store, call(2))

    assert await due_in(store, first.id, start) == pytest.approx(10, abs=0.01)


async def test_a_bad_call_changes_nothing(store: Store, virtual_time: VirtualTime) -> None:
    """A call that is refused leaves the task as it was."""
    del virtual_time
    first = await enqueue(store, call(1, queue="a"))
    with pytest.raises(Exception, match="queue"):
        await store.enqueue([a_task(), call(2, queue="x" * 256)])

    assert (await status(store, first.id)).queue == "a"
    assert await count(store) == 1


async def test_the_listing_follows(store: Store, virtual_time: VirtualTime) -> None:
    """A replaced task is listed under its new queue only."""
    del virtual_time
    first = await enqueue(store, call(1, queue="a"))
    await enqueue(store, call(2, queue="b"))

    assert await store.list_tasks(TaskFilter(queue="a")) == []
    assert [one.id for one in await store.list_tasks(TaskFilter(queue="b"))] == [first.id]
