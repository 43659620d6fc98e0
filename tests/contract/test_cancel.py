from __future__ import annotations

from uuid import UUID

import pytest

from nursery_queue._core._model import CancelRequest, Outcome, Refusal
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
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


async def requests(store: Store, worker: UUID) -> list[CancelRequest]:
    beat = await store.heartbeat(worker, draining=False)
    return list(beat.cancel_requests)


@pytest.mark.parametrize("run_after", [0, 60])
async def test_a_waiting_task_never_starts(
    store: Store, virtual_time: VirtualTime, run_after: float
) -> None:
    """A task that is ready or scheduled has ended at once."""
    task_id = await add(store, run_after=run_after)

    assert await store.cancel(task_id)

    found = await status(store, task_id)

    assert (found.state, found.finished_at) == (State.CANCELLED, found.created_at)
    assert (found.started_at, found.worker_id, found.error) == (None, None, None)

    virtual_time.advance(60)

    assert await store.promote() == 0
    assert await claim(store, await hire(store)) == []


@pytest.mark.parametrize("before", [State.SCHEDULED, State.READY])
async def test_a_task_between_attempts(store: Store, before: State) -> None:
    """A task that has run before keeps its counts and its log."""
    task = await claimed_once(store)
    event = Event.RETRY if before is State.SCHEDULED else Event.INTERRUPT
    await settle(store, task.fence, event, attempt=3, lost=1)

    assert await store.cancel(task.id)

    found = await status(store, task.id)

    assert (found.state, found.attempt, found.lost) == (State.CANCELLED, 3, 1)
    assert found.worker_id == task.worker
    assert len(await store.attempts(task.id)) == 1


@pytest.mark.parametrize("before", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
@pytest.mark.parametrize("running", [True, False])
async def test_a_task_that_has_ended(store: Store, before: State, running: bool) -> None:
    """There is nothing to cancel any more."""
    task = await brought_to(store, before)
    was = await status(store, task.id)

    assert not await store.cancel(task.id, running=running)
    assert await status(store, task.id) == was


async def test_an_unknown_task(store: Store) -> None:
    """An id that never was is no error."""
    assert not await store.cancel(10**12)


async def test_twice(store: Store) -> None:
    """The second cancel of a waiting task comes too late."""
    task_id = await add(store)

    assert await store.cancel(task_id)
    assert not await store.cancel(task_id)


async def test_a_running_task_is_asked_for(store: Store) -> None:
    """The worker learns of it with its heartbeat, every time until it has settled."""
    task, other = await claimed_once(store), await claimed_once(store)

    assert await requests(store, task.worker) == []
    assert await store.cancel(task.id)
    assert await store.cancel(task.id)

    asked = [CancelRequest(fence=task.fence, interrupt=True)]

    assert (await status(store, task.id)).cancel_requested
    assert await state(store, task.id) is State.RUNNING
    assert await requests(store, task.worker) == asked
    assert await requests(store, task.worker) == asked
    assert await requests(store, other.worker) == []

    await settle(store, task.fence, Event.CANCEL)

    assert await requests(store, task.worker) == []
    assert not (await status(store, task.id)).cancel_requested


@pytest.mark.parametrize(
    ("asked", "interrupt"),
    [
        ([True], True),
        ([False], False),
        ([False, True], True),
        ([True, False], True),
        ([False, False], False),
    ],
)
async def test_with_or_without_interrupting(
    store: Store, asked: list[bool], interrupt: bool
) -> None:
    """With running=False the attempt may finish; a request to interrupt is not taken back."""
    task = await claimed_once(store)
    for running in asked:
        assert await store.cancel(task.id, running=running)

    assert await requests(store, task.worker) == [
        CancelRequest(fence=task.fence, interrupt=interrupt)
    ]


async def test_no_other_attempt(store: Store) -> None:
    """After cancel with running=False a retry is refused, and the task can be cancelled."""
    task = await claimed_once(store)
    await store.cancel(task.id, running=False)
    retry = ends(task.fence, Event.RETRY)

    assert await store.settle([retry]) == {task.fence: Refusal.CANCEL_REQUESTED}
    assert [a.outcome for a in await store.attempts(task.id)] == [Outcome.RUNNING]

    await settle(store, task.fence, Event.CANCEL)

    assert await state(store, task.id) is State.CANCELLED
    assert len(await store.attempts(task.id)) == 1


async def test_a_request_ends_with_the_attempt(store: Store) -> None:
    """A task that was cancelled while running and is retried is not cancelled again."""
    task = await claimed_once(store)
    await store.cancel(task.id)
    await settle(store, task.fence, Event.CANCEL)
    await store.retry(task.id)
    one = await claim_one(store, task.worker)

    assert await requests(store, task.worker) == []

    await settle(store, one, Event.INTERRUPT)


@pytest.mark.parametrize("keep_for", [None, 0, 5])
async def test_a_cancelled_task_is_kept_like_any_other(
    store: Store, virtual_time: VirtualTime, keep_for: float | None
) -> None:
    """A waiting task that is cancelled is kept as long as was asked, or for a day."""
    task_id = await add(store, keep_for=keep_for)
    await store.cancel(task_id)
    kept = DAY if keep_for is None else keep_for
    if kept:
        virtual_time.advance(kept - 1)
        await store.prune()

        assert await state(store, task_id) is State.CANCELLED

        virtual_time.advance(1)

        assert await store.prune() == 1

    assert await count(store) == 0
    assert await state(store, task_id) is None


async def test_it_cancels_one_task(store: Store) -> None:
    """Tasks of the same queue and priority stay where they are."""
    before, task_id, after = await add(store), await add(store), await add(store)
    await store.cancel(task_id)

    assert await state(store, before) is State.READY
    assert await state(store, after) is State.READY
