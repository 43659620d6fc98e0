"""A dedup key that stays taken for a while (`dedup_for`)."""

from __future__ import annotations

import pytest
import trio

from nursery_queue._core._model import TaskRef
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import WAYS, a_task, add, brought_to, claimed_once, settle, state


THROTTLED = a_task(dedup_key="k", dedup_for=60)
PLAIN = a_task(dedup_key="k")
ENDED = [State.SUCCEEDED, State.FAILED, State.CANCELLED]


@pytest.mark.parametrize("again", [PLAIN, THROTTLED], ids=["plain", "throttled"])
@pytest.mark.parametrize("keep_for", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("ended", ENDED)
async def test_the_key_outlives_its_task(
    store: Store, virtual_time: VirtualTime, ended: State, keep_for: float, again: object
) -> None:
    """For so long after the enqueue the key leads to its task, ended or gone; then it is free."""
    del virtual_time
    task = await claimed_once(store, dedup_key="k", dedup_for=60)
    await trio.sleep(5)
    await settle(store, task.fence, WAYS[ended], keep_for=keep_for)
    await trio.sleep(54)
    await store.prune()

    assert await store.enqueue([again]) == [TaskRef(task.id, created=False)]  # type: ignore[list-item]

    await trio.sleep(2)
    (ref,) = await store.enqueue([PLAIN])

    assert ref.created


async def test_a_cancelled_task_keeps_it_too(store: Store, virtual_time: VirtualTime) -> None:
    """A waiting task that is cancelled keeps the key for its time."""
    del virtual_time
    task_id = await add(store, dedup_key="k", dedup_for=60, run_after=10, keep_for=0)
    await store.cancel(task_id)

    assert await state(store, task_id) is None
    assert await store.enqueue([PLAIN]) == [TaskRef(task_id, created=False)]

    await trio.sleep(61)

    assert (await store.enqueue([PLAIN]))[0].created


@pytest.mark.parametrize("waits", [State.SCHEDULED, State.READY, State.RUNNING])
async def test_a_live_task_keeps_it_longer(
    store: Store, virtual_time: VirtualTime, waits: State
) -> None:
    """A task that lives longer than that has the key until it ends, pruning or not."""
    del virtual_time
    task = await brought_to(store, waits, dedup_key="k", dedup_for=10)
    await trio.sleep(20)
    await store.prune()

    assert await store.enqueue([THROTTLED]) == [TaskRef(task.id, created=False)]

    await store.cancel(task.id)
    if waits is State.RUNNING:
        await settle(store, task.fence, Event.CANCEL)
    (ref,) = await store.enqueue([PLAIN])

    assert ref.created


async def test_the_time_runs_from_the_first(store: Store, virtual_time: VirtualTime) -> None:
    """An enqueue that stores nothing does not keep the key any longer."""
    del virtual_time
    task = await brought_to(store, State.SUCCEEDED, dedup_key="k", dedup_for=10)
    await trio.sleep(8)

    assert await store.enqueue([THROTTLED]) == [TaskRef(task.id, created=False)]

    await trio.sleep(3)

    assert (await store.enqueue([THROTTLED]))[0].created


async def test_one_list(store: Store, virtual_time: VirtualTime) -> None:
    """In a list the key is free, taken and kept as it is for one after the other."""
    del virtual_time
    await store.enqueue([a_task(dedup_key="old", dedup_for=1, run_after=10)])
    refs = await store.enqueue([THROTTLED, PLAIN, a_task(dedup_key="old"), a_task()])

    assert [ref.created for ref in refs] == [True, False, False, True]
    assert refs[0].id == refs[1].id


async def test_a_retry_within_the_time(store: Store, virtual_time: VirtualTime) -> None:
    """The task that has the key can be made to go again, and another one with it cannot."""
    del virtual_time
    old = await brought_to(store, State.FAILED, dedup_key="k")
    task = await brought_to(store, State.FAILED, dedup_key="k", dedup_for=60)

    assert not await store.retry(old.id)
    assert await store.retry(task.id)
    assert await store.enqueue([PLAIN]) == [TaskRef(task.id, created=False)]

    await store.cancel(task.id)

    assert await store.enqueue([PLAIN]) == [TaskRef(task.id, created=False)]

    await trio.sleep(61)

    assert await store.retry(old.id)
    assert await store.enqueue([PLAIN]) == [TaskRef(old.id, created=False)]


async def test_in_a_transaction(store: Store, virtual_time: VirtualTime) -> None:
    """A transaction sees the keys that it has taken, or that are kept."""
    del virtual_time
    ended = await brought_to(store, State.SUCCEEDED, dedup_key="ended", dedup_for=60)
    async with store.transaction() as tx:
        (first,) = await tx.enqueue([THROTTLED])
        await tx.cancel(first.id)

        assert await tx.enqueue([PLAIN]) == [TaskRef(first.id, created=False)]
        assert await tx.enqueue([a_task(dedup_key="ended")]) == [TaskRef(ended.id, created=False)]

    assert await store.enqueue([PLAIN]) == [TaskRef(first.id, created=False)]


async def test_keys_are_pruned(store: Store, virtual_time: VirtualTime) -> None:
    """Keys that are not taken any more go away, some at a time, and all others stay."""
    del virtual_time
    for key in ("a", "b"):
        task_id = await add(store, dedup_key=key, dedup_for=60, keep_for=0)
        await store.cancel(task_id)
    living = await add(store, dedup_key="c", dedup_for=60, run_after=1000)
    await trio.sleep(59)
    await store.prune()

    assert not (await store.enqueue([a_task(dedup_key="a")]))[0].created

    await trio.sleep(2)
    await store.prune()
    await trio.sleep(500)
    await store.prune()
    refs = await store.enqueue([a_task(dedup_key=key) for key in "abc"])

    assert [ref.created for ref in refs] == [True, True, False]
    assert refs[2].id == living
