from __future__ import annotations

import pytest

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._states import FINAL, TRANSITIONS, Event, State, transition
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
    ERROR,
    WAYS,
    a_task,
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
)


LAST = [e for e in TRANSITIONS[State.RUNNING] if transition(State.RUNNING, e) in FINAL]


@pytest.mark.parametrize("event", LAST)
async def test_keep_for_nothing(store: Store, event: Event) -> None:
    """With keep_for=0 the task and its whole log are gone when it ends."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.INTERRUPT)
    again = await claim_one(store, task.worker)
    await settle(store, again, event, keep_for=0, error=ERROR, result="1")

    assert await state(store, task.id) is None
    assert await store.attempts(task.id) == []
    assert await store.list_tasks(TaskFilter()) == []
    assert not await store.retry(task.id)
    assert not await store.cancel(task.id)
    assert (await store.stats()).queues == {}


async def test_keep_for_nothing_is_for_the_end(store: Store) -> None:
    """A task that goes round again is not deleted, whatever is to become of it."""
    task = await claimed_once(store, keep_for=0)
    await settle(store, task.fence, Event.INTERRUPT, keep_for=0)

    assert await state(store, task.id) is State.READY
    assert len(await store.attempts(task.id)) == 1


@pytest.mark.parametrize("event", LAST)
async def test_kept_as_long_as_asked(store: Store, virtual_time: VirtualTime, event: Event) -> None:
    """A finished task stays for keep_for seconds from its end, then goes with its log."""
    task = await claimed_once(store)
    virtual_time.advance(50)
    await settle(store, task.fence, event, keep_for=100)
    virtual_time.advance(99.9)

    assert await store.prune() == 0
    assert await state(store, task.id) in FINAL

    virtual_time.advance(0.1)

    assert await store.prune() == 1
    assert await store.prune() == 0
    assert await state(store, task.id) is None
    assert await store.attempts(task.id) == []


async def test_live_tasks_are_never_pruned(store: Store, virtual_time: VirtualTime) -> None:
    """However old, a task that has not ended stays, with its log."""
    for goal in (State.SCHEDULED, State.RUNNING, State.READY):
        await brought_to(store, goal, keep_for=0)
    scheduled = await add(store, run_after=400 * DAY, keep_for=0)
    virtual_time.advance(200 * DAY)

    assert await store.prune() == 0
    assert await count(store) == 4
    assert await state(store, scheduled) is State.SCHEDULED


@pytest.mark.parametrize("ended", [State.FAILED, State.CANCELLED])
async def test_a_retried_task_is_live_again(
    store: Store, virtual_time: VirtualTime, ended: State
) -> None:
    """A task that was made ready again is not pruned on account of its former end."""
    task = await claimed_once(store)
    await settle(store, task.fence, WAYS[ended], keep_for=10)
    await store.retry(task.id)
    virtual_time.advance(20)

    assert await store.prune() == 0
    assert await state(store, task.id) is State.READY
    assert len(await store.attempts(task.id)) == 1


async def test_pruned_in_batches(store: Store, virtual_time: VirtualTime) -> None:
    """One call deletes many but not without bound, and those not yet due stay."""
    await store.enqueue([a_task() for _ in range(1510)])
    claims = await claim(store, await hire(store), 1510)
    await store.settle(
        [ends(one, Event.SUCCEED, keep_for=5 if i < 1500 else 50) for i, one in enumerate(claims)]
    )
    virtual_time.advance(5)
    calls: list[int] = []
    while pruned := await store.prune():
        calls.append(pruned)

    assert sum(calls) == 1500
    assert 2 <= len(calls) <= 15
    assert await count(store, State.SUCCEEDED) == 10
