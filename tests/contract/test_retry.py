"""Letting a task go again that has failed or was cancelled."""

from __future__ import annotations

import pytest

from nursery_queue._core._model import Outcome, Refusal
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
    ERROR,
    add,
    brought_to,
    claim,
    claim_one,
    claimed_once,
    count,
    ends,
    hire,
    settle,
    state,
    status,
)


AGAIN = [State.FAILED, State.CANCELLED]


@pytest.mark.parametrize("before", [each for each in State if each not in AGAIN])
async def test_no_other_task(store: Store, before: State) -> None:
    """What has not ended, or ended well, stays what and where it is."""
    task = await brought_to(store, before)
    was, log = await status(store, task.id), await store.attempts(task.id)

    assert not await store.retry(task.id)
    assert await status(store, task.id) == was
    assert await store.attempts(task.id) == log


async def test_an_unknown_task(store: Store) -> None:
    """There is nothing to retry where there is nothing."""
    assert not await store.retry(10**12)


@pytest.mark.parametrize("before", AGAIN)
async def test_it_is_as_new(store: Store, virtual_time: VirtualTime, before: State) -> None:
    """It is ready at once, with all its attempts, and without result, error or end."""
    task = await claimed_once(store, priority=3, queue="q", keep_for=60)
    event = Event.FAIL if before is State.FAILED else Event.CANCEL
    await settle(store, task.fence, event, attempt=5, lost=2, keep_for=60, error=ERROR)
    virtual_time.advance(7)

    assert await store.retry(task.id)

    found = await status(store, task.id)

    assert (found.state, found.attempt, found.lost) == (State.READY, 0, 0)
    assert (found.error, found.finished_at, found.result) == (None, None, None)
    assert (found.priority, found.queue, found.cancel_requested) == (3, "q", False)
    assert await count(store) == 1

    virtual_time.advance(DAY)

    assert await store.prune() == 0

    (one,) = await claim(store, await hire(store))

    assert (one.fence.task_id, one.attempt, one.lost, one.keep_for) == (task.id, 1, 0, 60)


@pytest.mark.parametrize("before", AGAIN)
async def test_the_log_goes_on(store: Store, before: State) -> None:
    """What is in the log stays there, and the next execution has the next number."""
    task = await brought_to(store, before)
    log = await store.attempts(task.id)
    for number in range(2, 5):
        assert await store.retry(task.id)
        assert await store.attempts(task.id) == log

        one = await claim_one(store, task.worker)
        *past, running = await store.attempts(task.id)

        assert past == log
        assert (running.number, running.outcome) == (number, Outcome.RUNNING)

        await settle(store, one, Event.FAIL if number < 4 else Event.SUCCEED)
        log = await store.attempts(task.id)

    assert [attempt.number for attempt in log] == [1, 2, 3, 4]
    assert await state(store, task.id) is State.SUCCEEDED
    assert not await store.retry(task.id)


@pytest.mark.parametrize("before", AGAIN)
async def test_an_old_claim_stays_stale(store: Store, before: State) -> None:
    """Who held the task before cannot settle what goes on now."""
    task = await brought_to(store, before)
    await store.retry(task.id)
    stale = {task.fence: Refusal.STALE}

    assert await store.settle([ends(task.fence, Event.SUCCEED)]) == stale

    one = await claim_one(store, task.worker)

    assert one.fence.epoch > task.fence.epoch
    assert await store.settle([ends(task.fence, Event.SUCCEED)]) == stale
    assert await state(store, task.id) is State.RUNNING


async def test_a_task_that_never_ran(store: Store) -> None:
    """A task that was cancelled while it waited, whenever it was due, may run now."""
    for run_after in (0.0, 600.0):
        task_id = await add(store, run_after=run_after, priority=1)
        await store.cancel(task_id)

        assert await store.retry(task_id)

        one = await claim_one(store, await hire(store))

        assert (one.fence.task_id, one.attempt) == (task_id, 1)
        assert len(await store.attempts(task_id)) == 1


async def test_twice(store: Store) -> None:
    """The second retry finds it ready, and there is one of it."""
    task = await brought_to(store, State.FAILED)

    assert await store.retry(task.id)
    assert not await store.retry(task.id)
    assert [one.fence.task_id for one in await claim(store, task.worker)] == [task.id]


async def test_a_task_that_is_not_kept(store: Store) -> None:
    """A task that was deleted at its end cannot go again."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.FAIL, keep_for=0)

    assert not await store.retry(task.id)


async def test_it_tells_again(store: Store) -> None:
    """Each time it ends, what asked to be told is told."""
    task = await claimed_once(store, on_complete='{"task_type": "tell"}')
    await settle(store, task.fence, Event.FAIL, on_complete=True)
    await store.retry(task.id)

    assert await count(store, State.READY) == 2

    one = await claim_one(store, task.worker)

    assert one.on_complete

    await settle(store, one, Event.SUCCEED, on_complete=True)

    assert await count(store, State.READY) == 2
