from __future__ import annotations

import contextlib
import functools

import pytest
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import TaskRef
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
    LEASE,
    WAYS,
    a_task,
    add,
    brought_to,
    claim,
    claimed_once,
    count,
    hire,
    refusal,
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


async def test_the_order_of_one_batch(store: Store) -> None:
    """With keys, without and with those that are taken: ids grow in the order of the batch."""
    first = await add(store, dedup_key="taken")
    keys = ["z", None, "taken", "a", "z", None, "m", "taken"]
    refs = await store.enqueue([a_task(dedup_key=key) for key in keys])
    created = [ref.id for ref in refs if ref.created]
    claims = await claim(store, await hire(store))

    assert [ref.created for ref in refs] == [True, True, False, True, False, True, True, False]
    assert (refs[2].id, refs[4].id, refs[7].id) == (first, refs[0].id, first)
    assert created == sorted(created)
    assert [one.fence.task_id for one in claims] == [first, *created]


async def test_a_large_batch(store: Store) -> None:
    """In a batch of ten thousand each key is one task; the first of its kind is stored."""
    batch = [
        a_task(dedup_key=f"k{i * 7919 % 5000}", params=f'{{"i": {i}}}', priority=i % 3)
        for i in range(10_000)
    ]
    refs = await store.enqueue(batch)
    found = await store.status_many([ref.id for ref in refs], payloads=True)

    assert sum(ref.created for ref in refs) == 5000
    assert [one and one.params["i"] for one in found] == [i % 5000 for i in range(10_000)]
    assert [one and one.priority for one in found] == [i % 5000 % 3 for i in range(10_000)]


async def test_all_or_nothing(store: Store) -> None:
    """If one of a batch cannot be stored, none is, and no key is taken."""
    with refusal():
        await store.enqueue([KEYED, a_task(dedup_key="j"), a_task(params="[]")])

    assert await count(store) == 0
    assert [ref.created for ref in await store.enqueue([KEYED, a_task(dedup_key="j")])] == [
        True,
        True,
    ]


async def test_everything_that_was_asked_is_stored(store: Store) -> None:
    """A task with a key has all its options, like one without."""
    asked = a_task(
        dedup_key="k",
        queue="q",
        priority=3,
        max_attempts=7,
        backoff=RetryPolicy(initial=0.5, maximum=9, factor=3, jitter=0.25),
        timeout=1.5,
        keep_for=2.5,
        on_complete='{"task_type": "tell"}',
        context='{"c": 1}',
    )
    later = a_task(dedup_key="later", run_after=60)
    refs = await store.enqueue([asked, later])
    (one,) = await claim(store, await hire(store))
    first, second = await store.status_many([ref.id for ref in refs], payloads=True)

    assert (one.queue, one.max_attempts, one.timeout, one.keep_for) == ("q", 7, 1.5, 2.5)
    assert (one.backoff, one.on_complete) == (asked.backoff, True)
    assert first is not None
    assert second is not None
    assert (first.priority, first.on_complete, first.context) == (3, "tell", {"c": 1})
    assert (second.run_at - second.created_at).total_seconds() == 60


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


async def test_a_second_one_in_a_transaction_that_fails(store: Store) -> None:
    """The first task is what it was, whatever becomes of a transaction that asked for its key."""
    first = await brought_to(store, State.RUNNING, dedup_key="k")
    found = [TaskRef(first.id, created=False)]
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            assert await tx.enqueue([KEYED]) == found

            raise ZeroDivisionError

    assert await state(store, first.id) is State.RUNNING
    assert await store.enqueue([KEYED]) == found


async def test_a_key_in_a_savepoint(store: Store) -> None:
    """A key taken in a savepoint that failed is free in the same transaction."""
    async with store.transaction() as tx:
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint():
                await tx.enqueue([KEYED])
                raise ZeroDivisionError
        (ref,) = await tx.enqueue([KEYED])

    assert ref.created
    assert await state(store, ref.id) is State.READY


async def test_two_transactions(store: Store) -> None:
    """Of two transactions with the same key at once, there is one task in the end."""
    refs: list[TaskRef] = []

    async def enqueue(*, fails: bool) -> None:
        with contextlib.suppress(ZeroDivisionError, TransientError):
            async with store.transaction() as tx:
                refs.extend(await tx.enqueue([KEYED]))
                if fails:
                    raise ZeroDivisionError

    async with trio.open_nursery() as nursery:
        for i in range(10):
            nursery.start_soon(functools.partial(enqueue, fails=i % 2 == 0))
    (only,) = await store.list_tasks(TaskFilter())

    assert only.id in {ref.id for ref in refs}


@pytest.mark.parametrize("way", ["lost", "cancel_all", "pruned"])
async def test_other_ends(store: Store, virtual_time: VirtualTime, way: str) -> None:
    """A task that was lost once too often, or cancelled with others, frees its key too."""
    task = await brought_to(
        store, State.RUNNING if way == "lost" else State.SCHEDULED, dedup_key="k"
    )
    if way == "lost":
        virtual_time.advance(LEASE + 1)
        await store.sweep(max_lost=0)
    else:
        await store.cancel_some(CancelFilter(), after=0, upto=task.id, dry_run=False)
    if way == "pruned":
        virtual_time.advance(DAY + 1)
        await store.prune()
    (ref,) = await store.enqueue([KEYED])

    assert await state(store, task.id) is {"lost": State.FAILED, "pruned": None}.get(
        way, State.CANCELLED
    )
    assert ref.created


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
