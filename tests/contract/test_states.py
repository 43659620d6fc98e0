"""Every state and every event, from the table itself."""

from __future__ import annotations

import pytest

from nursery_queue._core._errors import InvalidTransition, StaleClaim
from nursery_queue._core._states import TRANSITIONS, Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    Known,
    add,
    brought_to,
    claim,
    claimed_once,
    ends,
    settle,
    state,
)


ALL = [(before, event) for before in State for event in Event]
FROM_RUNNING = list(TRANSITIONS[State.RUNNING])


async def attempt(store: Store, task: Known, before: State, event: Event) -> bool:
    """Try to make *event* happen through the verb for it; say whether it did."""
    match event:
        case Event.PROMOTE:
            return await store.promote() == 1
        case Event.CLAIM:
            return len(await claim(store, task.worker)) == 1
        case Event.REVIVE:
            return await store.retry(task.id)
        case Event.CANCEL if before is not State.RUNNING:
            return await store.cancel(task.id)
        case _:
            return await store.settle([ends(task.fence, event)]) == {}


@pytest.mark.parametrize(("before", "event"), ALL)
async def test_every_state_and_event(
    store: Store, virtual_time: VirtualTime, before: State, event: Event
) -> None:
    """A legal event leads where the table says, and an illegal one changes nothing."""
    task = await brought_to(store, before)
    if event is Event.PROMOTE:
        virtual_time.advance(60)
    happened = await attempt(store, task, before, event)

    assert happened is (event in TRANSITIONS[before])
    assert await state(store, task.id) is TRANSITIONS[before].get(event, before)


@pytest.mark.parametrize("event", FROM_RUNNING)
async def test_every_edge_out_of_running_in_a_transaction(store: Store, event: Event) -> None:
    """A claim settled in a transaction goes where the table says, with the commit."""
    task = await claimed_once(store)
    async with store.transaction() as tx:
        await tx.settle(ends(task.fence, event))

        assert await state(store, task.id) is State.RUNNING

    assert await state(store, task.id) is TRANSITIONS[State.RUNNING][event]


@pytest.mark.parametrize("before", [before for before in State if before is not State.RUNNING])
async def test_only_running_tasks_are_settled_in_a_transaction(store: Store, before: State) -> None:
    """The fence of a claim that has ended is refused, whatever became of the task."""
    task = await brought_to(store, before)
    with pytest.raises(StaleClaim):
        async with store.transaction() as tx:
            await tx.settle(ends(task.fence, Event.SUCCEED))

    assert await state(store, task.id) is before


@pytest.mark.parametrize("event", [event for event in Event if event not in FROM_RUNNING])
async def test_what_no_settlement_may_say(store: Store, event: Event) -> None:
    """A batch with an event that cannot happen to a running task changes nothing."""
    good, bad = await claimed_once(store), await claimed_once(store)
    with pytest.raises(InvalidTransition):
        await store.settle([ends(good.fence, Event.SUCCEED), ends(bad.fence, event)])

    assert await state(store, good.id) is State.RUNNING
    assert await state(store, bad.id) is State.RUNNING


async def test_a_task_begins_ready_or_scheduled(store: Store) -> None:
    """A task that may run now is ready; one that is due later is scheduled."""
    assert await state(store, await add(store)) is State.READY
    assert await state(store, await add(store, run_after=60)) is State.SCHEDULED


@pytest.mark.parametrize("event", [e for e in FROM_RUNNING if e is not Event.INTERRUPT])
async def test_the_way_round_again(store: Store, virtual_time: VirtualTime, event: Event) -> None:
    """Wherever the first attempt led, a task that can be brought back runs again."""
    task = await claimed_once(store)
    await settle(store, task.fence, event)
    virtual_time.advance(60)
    await store.promote()
    await store.retry(task.id)

    assert len(await claim(store, task.worker)) == (event is not Event.SUCCEED)
