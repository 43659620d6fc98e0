from __future__ import annotations

import pytest
import trio

from nursery_queue._core._model import TaskRef
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.contract.steps import (
    WAYS,
    a_task,
    add,
    brought_to,
    claimed_once,
    count,
    settle,
    state,
)


KEYED = a_task(dedup_key="k")
LIVE = [State.SCHEDULED, State.READY, State.RUNNING]
ENDED = [State.SUCCEEDED, State.FAILED, State.CANCELLED]


@pytest.mark.parametrize("first", LIVE)
async def test_a_live_task_holds_its_key(store: Store, first: State) -> None:
    """While a task has not ended, its key leads to it, and nothing is stored."""
    task = await brought_to(store, first, dedup_key="k")
    (ref,) = await store.enqueue([a_task(dedup_key="k", priority=9)])

    assert (ref.id, ref.created) == (task.id, False)
    assert await count(store) == 1


@pytest.mark.parametrize("ended", ENDED)
async def test_the_end_frees_the_key(store: Store, ended: State) -> None:
    """However a task has ended, its key can be used again."""
    task = await brought_to(store, ended, dedup_key="k")
    (ref,) = await store.enqueue([KEYED])

    assert ref.created
    assert ref.id != task.id


async def test_cancelling_a_waiting_task_frees_the_key(store: Store) -> None:
    """A task that never ran gives its key back too."""
    for run_after in (0.0, 60.0):
        task_id = await add(store, dedup_key="k", run_after=run_after)
        await store.cancel(task_id)
        (ref,) = await store.enqueue([KEYED])

        assert ref.created
        assert await store.cancel(ref.id)


async def test_one_batch(store: Store) -> None:
    """The same key twice in one batch is one task; the others are as ever."""
    batch = [a_task(), KEYED, a_task(dedup_key="other"), KEYED, a_task()]
    refs = await store.enqueue(batch)

    assert [ref.created for ref in refs] == [True, True, True, False, True]
    assert refs[3].id == refs[1].id
    assert await count(store) == 4


async def test_keys_are_compared_exactly(store: Store) -> None:
    """Case, spaces and the type of task make no two keys one, or one key two."""
    refs = await store.enqueue(
        [a_task(dedup_key=key) for key in ("k", "K", "k ", " k", "ḱ")]
        + [a_task(dedup_key="k", task_type="another", queue="elsewhere")]
    )

    assert [ref.created for ref in refs] == [True] * 5 + [False]


async def test_in_a_transaction(store: Store) -> None:
    """Within a transaction the second enqueue finds the first, which nobody else sees yet."""
    async with store.transaction() as tx:
        first = await tx.enqueue([KEYED])
        second = await tx.enqueue([a_task(), KEYED])

    assert second[1].id == first[0].id
    assert [ref.created for ref in first + second] == [True, True, False]
    assert await count(store) == 2


async def test_a_rolled_back_key_is_free(store: Store) -> None:
    """A key taken in a transaction that failed was never taken."""
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.enqueue([KEYED])
            raise ZeroDivisionError
    (ref,) = await store.enqueue([KEYED])

    assert ref.created


async def test_a_key_freed_in_the_same_transaction(store: Store) -> None:
    """Whoever ends a task in a transaction can use its key there."""
    waiting = await add(store, dedup_key="waiting")
    running = await claimed_once(store, dedup_key="running", priority=1)
    async with store.transaction() as tx:
        await tx.cancel(waiting)
        (first,) = await tx.enqueue([a_task(dedup_key="waiting")])
        await tx.cancel(first.id)
        (second,) = await tx.enqueue([a_task(dedup_key="waiting")])
    await settle(store, running.fence, Event.FAIL)

    assert first.created
    assert second.created
    assert await state(store, first.id) is State.CANCELLED
    assert await state(store, second.id) is State.READY


async def test_a_retried_task_takes_its_key_again(store: Store) -> None:
    """A task that is made ready again holds its key again."""
    task = await brought_to(store, State.FAILED, dedup_key="k")

    assert await store.retry(task.id)

    (ref,) = await store.enqueue([KEYED])

    assert (ref.id, ref.created) == (task.id, False)


@pytest.mark.parametrize("ended", [State.FAILED, State.CANCELLED])
async def test_a_key_taken_meanwhile(store: Store, ended: State) -> None:
    """A task whose key another has by now is not retried, and neither is touched."""
    task = await brought_to(store, ended, dedup_key="k")
    (ref,) = await store.enqueue([KEYED])

    assert not await store.retry(task.id)
    assert await state(store, task.id) is ended
    assert await state(store, ref.id) is State.READY

    await store.cancel(ref.id)

    assert await store.retry(task.id)


@pytest.mark.parametrize("event", [WAYS[state] for state in ENDED])
async def test_keep_for_nothing_frees_the_key(store: Store, event: Event) -> None:
    """A task that is deleted at its end leaves no key behind."""
    task = await claimed_once(store, dedup_key="k")
    await settle(store, task.fence, event, keep_for=0)
    (ref,) = await store.enqueue([KEYED])

    assert ref.created


async def test_many_at_the_same_time(store: Store, virtual_time: VirtualTime) -> None:
    """Of many who enqueue one key at once, one creates the task and all get its id."""
    refs: list[TaskRef] = []

    async def enqueue() -> None:
        refs.extend(await store.enqueue([KEYED]))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(enqueue)

    assert len(refs) == 20
    assert len({ref.id for ref in refs}) == 1
    assert [ref.created for ref in refs].count(True) == 1
    assert await count(store) == 1
