from __future__ import annotations

import contextlib

import pytest
import trio

from nursery_queue._core._errors import StaleClaim, TransientError
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import Outcome, TaskRef
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    a_task,
    add,
    claim,
    claim_one,
    claimed_once,
    count,
    ends,
    hire,
    refusal,
    settle,
    state,
    status,
)


class Oops(Exception):
    pass


async def test_the_commit_makes_it_so(store: Store) -> None:
    """Nobody sees or claims a task before the commit; after it everybody does."""
    worker = await hire(store)
    async with store.transaction() as tx:
        refs = await tx.enqueue([a_task(priority=1), a_task(run_after=60), a_task()])

        assert await count(store) == 0
        assert await claim(store, worker) == []
        assert await state(store, refs[0].id) is None

    found = [one and one.state for one in await store.status_many([ref.id for ref in refs])]

    assert found == [State.READY, State.SCHEDULED, State.READY]
    assert [one.fence.task_id for one in await claim(store, worker)] == [refs[0].id, refs[2].id]


async def test_rollback(store: Store) -> None:
    """What leaves the block by an exception was never done."""
    waiting, running = await add(store), await claimed_once(store, priority=1)
    for _ in range(10):
        with pytest.raises(Oops):
            async with store.transaction() as tx:
                await tx.enqueue([a_task(), a_task(run_after=60), a_task(dedup_key="k")])
                await tx.cancel(waiting)
                await tx.settle(ends(running.fence, Event.SUCCEED))
                raise Oops

    assert await count(store) == 2
    assert await state(store, waiting) is State.READY
    assert await state(store, running.id) is State.RUNNING
    assert [a.outcome for a in await store.attempts(running.id)] == [Outcome.RUNNING]

    await settle(store, running.fence, Event.SUCCEED)


async def test_ids_are_not_given_out_twice(store: Store) -> None:
    """The ids of tasks that were rolled back belong to nobody else."""
    lost: list[TaskRef] = []
    with pytest.raises(Oops):
        async with store.transaction() as tx:
            lost += await tx.enqueue([a_task()])
            raise Oops

    assert await add(store) != lost[0].id
    assert await state(store, lost[0].id) is None


async def test_a_cancelled_block(store: Store) -> None:
    """A block that trio cancelled is rolled back."""
    with trio.CancelScope() as scope:
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            scope.cancel()
            await trio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert await count(store) == 0


async def test_nothing_in_a_transaction(store: Store) -> None:
    """An empty block, and an empty batch in it, do nothing."""
    async with store.transaction() as tx:
        assert await tx.enqueue([]) == []

    assert await count(store) == 0


async def test_a_savepoint_fails_alone(store: Store) -> None:
    """What was done in a block that failed is undone, and the rest is committed."""
    task, gone = await claimed_once(store), list[TaskRef]()
    async with store.transaction() as tx:
        (first,) = await tx.enqueue([a_task()])
        with contextlib.suppress(Oops):
            async with tx.savepoint():
                gone += await tx.enqueue([a_task(dedup_key="k")])
                await tx.cancel(first.id)
                await tx.settle(ends(task.fence, Event.FAIL))
                raise Oops
        (again,) = await tx.enqueue([a_task(dedup_key="k")])
        await tx.settle(ends(task.fence, Event.SUCCEED))

    assert again.created
    assert await state(store, gone[0].id) is None
    assert await state(store, first.id) is State.READY
    assert await state(store, again.id) is State.READY
    assert await state(store, task.id) is State.SUCCEEDED


async def test_nested_savepoints(store: Store) -> None:
    """An inner block that went well goes with the outer one that did not."""
    inner: list[TaskRef] = []
    async with store.transaction() as tx:
        with contextlib.suppress(Oops):
            async with tx.savepoint():
                async with tx.savepoint():
                    inner += await tx.enqueue([a_task()])
                raise Oops
        async with tx.savepoint():
            (kept,) = await tx.enqueue([a_task()])

    assert await state(store, inner[0].id) is None
    assert await state(store, kept.id) is State.READY


async def test_a_savepoint_heals_an_error(store: Store) -> None:
    """After a refused enqueue in a savepoint the transaction goes on."""
    async with store.transaction() as tx:
        with refusal():
            async with tx.savepoint():
                await tx.enqueue([a_task(params="[]")])
        await tx.enqueue([a_task()])

    assert await count(store) == 1


async def test_cancel(store: Store) -> None:
    """A cancel takes effect with the commit, and answers as it does outside."""
    waiting, running = await add(store), await claimed_once(store, priority=1)
    async with store.transaction() as tx:
        (own,) = await tx.enqueue([a_task()])

        assert await tx.cancel(waiting)
        assert not await tx.cancel(waiting)
        assert await tx.cancel(running.id, running=False)
        assert await tx.cancel(running.id)
        assert await tx.cancel(own.id)
        assert not await tx.cancel(own.id)
        assert not await tx.cancel(10**12)
        assert await state(store, waiting) is State.READY
        assert not (await status(store, running.id)).cancel_requested

    assert await state(store, waiting) is State.CANCELLED
    assert await state(store, own.id) is State.CANCELLED

    beat = await store.heartbeat(running.worker, draining=False)

    assert [asked.interrupt for asked in beat.cancel_requests] == [True]


async def test_settle(store: Store) -> None:
    """The writes of a handler and the end of its task are one."""
    task = await claimed_once(store)
    async with store.transaction() as tx:
        (next_one,) = await tx.enqueue([a_task()])
        await tx.settle(ends(task.fence, Event.SUCCEED, result="[1]"))

    found = await status(store, task.id)

    assert (found.state, found.result) == (State.SUCCEEDED, [1])
    assert await state(store, next_one.id) is State.READY


async def test_a_stale_claim(store: Store) -> None:
    """With a claim that is not held any more nothing else of the block happens either."""
    task, waiting = await claimed_once(store), await add(store)
    await settle(store, task.fence, Event.INTERRUPT)
    new = await claim(store, task.worker)
    with pytest.raises(StaleClaim):
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            await tx.cancel(waiting)
            await tx.settle(ends(task.fence, Event.SUCCEED))

    assert await count(store, State.RUNNING) == len(new) == 2
    assert await count(store) == 2
    assert not any(one.cancel_requested for one in await store.list_tasks(TaskFilter()))


async def test_a_claim_lost_in_the_meantime(store: Store, virtual_time: VirtualTime) -> None:
    """A claim that is lost while the block is open cannot be settled in it."""
    task = await claimed_once(store)
    with pytest.raises(StaleClaim):
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            await store.deregister(task.worker)
            await store.sweep(max_lost=3)
            await tx.settle(ends(task.fence, Event.SUCCEED))

    assert await count(store) == 1
    assert await state(store, task.id) is State.READY


async def test_a_claim_lost_before_the_commit(store: Store) -> None:
    """A claim settled in an open block stays ours to the commit, or the commit is refused."""
    task, committed, swept = await claimed_once(store), False, 0
    with contextlib.suppress(StaleClaim):
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            await tx.settle(ends(task.fence, Event.SUCCEED))
            await store.deregister(task.worker)
            swept = await store.sweep(max_lost=3)
        committed = True

    assert committed is (swept == 0)
    assert await state(store, task.id) is (State.SUCCEEDED if committed else State.READY)
    assert await count(store) == (2 if committed else 1)


async def test_a_stale_claim_that_was_caught(store: Store) -> None:
    """Who catches `StaleClaim` can commit the rest."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.SUCCEED)
    async with store.transaction() as tx:
        (ref,) = await tx.enqueue([a_task()])
        with pytest.raises(StaleClaim):
            await tx.settle(ends(task.fence, Event.SUCCEED))

    assert await state(store, ref.id) is State.READY


async def test_settling_twice(store: Store) -> None:
    """The second settlement in one transaction is stale, and takes the first with it."""
    task = await claimed_once(store)
    with pytest.raises(StaleClaim):
        async with store.transaction() as tx:
            await tx.settle(ends(task.fence, Event.RETRY))
            await tx.settle(ends(task.fence, Event.SUCCEED))

    assert await state(store, task.id) is State.RUNNING


async def test_a_task_to_be_cancelled(store: Store) -> None:
    """One that must not go round again is refused for now, and can be cancelled instead."""
    task = await claimed_once(store)
    await store.cancel(task.id, running=False)
    with pytest.raises(TransientError):
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            await tx.settle(ends(task.fence, Event.RETRY))

    assert await count(store) == 1
    assert await state(store, task.id) is State.RUNNING

    async with store.transaction() as tx:
        await tx.settle(ends(task.fence, Event.CANCEL))

    assert await state(store, task.id) is State.CANCELLED


async def test_a_task_that_is_cancelled_first(store: Store) -> None:
    """Nor must one go round again of which the block itself has asked that it be cancelled."""
    task = await claimed_once(store)
    with pytest.raises(TransientError):
        async with store.transaction() as tx:
            await tx.cancel(task.id, running=False)
            await tx.settle(ends(task.fence, Event.RETRY))

    assert await state(store, task.id) is State.RUNNING

    async with store.transaction() as tx:
        await tx.settle(ends(task.fence, Event.RETRY))

        assert await tx.cancel(task.id)
        assert not await tx.cancel(task.id)

    assert await state(store, task.id) is State.CANCELLED


async def test_ids_are_in_the_order_of_the_steps(store: Store) -> None:
    """A task that tells how another has ended is older than one that is enqueued afterwards."""
    telling = '{"task_type": "tell"}'
    task = await claimed_once(store, on_complete=telling)
    waiting = await add(store, on_complete=telling)
    async with store.transaction() as tx:
        await tx.settle(ends(task.fence, Event.SUCCEED, on_complete=True))
        (first,) = await tx.enqueue([a_task()])
        await tx.cancel(waiting)
        (last,) = await tx.enqueue([a_task()])

    newest = [one.id for one in await store.list_tasks(TaskFilter(limit=4))]
    told = [one.completes for one in await store.list_tasks(TaskFilter(limit=4))]

    assert (newest[0], newest[2]) == (last.id, first.id)
    assert told == [None, waiting, None, task.id]


async def test_keep_for_nothing(store: Store) -> None:
    """A task that is not to be kept goes with the commit, not before."""
    task = await claimed_once(store, dedup_key="k")
    async with store.transaction() as tx:
        await tx.settle(ends(task.fence, Event.SUCCEED, keep_for=0))

        assert await state(store, task.id) is State.RUNNING

    assert await count(store) == 0


async def test_time_runs_from_the_enqueue(store: Store, virtual_time: VirtualTime) -> None:
    """A task is due so long after its enqueue, not after the commit."""
    async with store.transaction() as tx:
        (ref,) = await tx.enqueue([a_task(run_after=10)])
        virtual_time.advance(4)
        (other,) = await tx.enqueue([a_task()])

    found, after = await status(store, ref.id), await status(store, other.id)

    assert (found.run_at - found.created_at).total_seconds() == 10
    assert (after.created_at - found.created_at).total_seconds() == 4


async def test_two_at_a_time(store: Store) -> None:
    """Open transactions do not see each other, and commit each its own."""
    async with store.transaction() as one, store.transaction() as two:
        (first,) = await one.enqueue([a_task()])
        (second,) = await two.enqueue([a_task()])

        assert not await one.cancel(second.id)
        assert not await two.cancel(first.id)

    assert await count(store, State.READY) == 2


async def test_claims_beside_an_open_transaction(store: Store) -> None:
    """A task that somebody is about to cancel keeps nobody from claiming the others."""
    first, second = await add(store, priority=1), await add(store)
    worker = await hire(store)
    async with store.transaction() as tx:
        await tx.cancel(second)

        assert (await claim_one(store, worker)).fence.task_id == first

    assert await state(store, second) is State.CANCELLED


async def test_status(store: Store) -> None:
    """A transaction sees what it has done, and nobody else does before its commit."""
    waiting, running = await add(store, params='{"a": 1}'), await claimed_once(store, priority=1)
    asked = [waiting, running.fence.task_id]
    before = await store.status_many(asked), await store.attempts(running.fence.task_id)
    with pytest.raises(Oops):
        async with store.transaction() as tx:
            assert await tx.status_many(asked) == before[0]
            new = (await tx.enqueue([a_task(params='{"b": 2}', dedup_key="k")]))[0].id
            await tx.cancel(waiting)
            await tx.settle(ends(running.fence, Event.SUCCEED))
            found = await tx.status_many([new, 10**6, *asked], payloads=True)

            assert [each and (each.state, each.params) for each in found] == [
                (State.READY, {"b": 2}),
                None,
                (State.CANCELLED, {"a": 1}),
                (State.SUCCEEDED, {}),
            ]
            assert await tx.status_many(asked) != before[0]
            raise Oops

    assert before == (await store.status_many(asked), await store.attempts(running.fence.task_id))
    (ref,) = await store.enqueue([a_task(dedup_key="k")])
    assert ref.created
