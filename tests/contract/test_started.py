"""Only a start counts as lost: what a worker was holding ahead when it died goes back unharmed."""

from __future__ import annotations

import attrs
import pytest

from nursery_queue._core._model import Held, Settlement
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    LEASE,
    TYPE,
    a_task,
    claim,
    claim_one,
    claimed_once,
    ends,
    hire,
    settle,
    state,
    status,
)


async def die_unstarted(store: Store, virtual_time: VirtualTime) -> None:
    """Have a worker claim everything ahead and die of silence, and sweep."""
    await claim(store, await hire(store), at_once=0)
    virtual_time.advance(LEASE + 1)

    assert await store.sweep(max_lost=3) > 0


async def test_what_was_held_ahead_goes_back_unharmed(
    store: Store, virtual_time: VirtualTime
) -> None:
    """However many workers die with claims that were held ahead, only what started is lost."""
    refs = await store.enqueue([a_task() for _ in range(12)])
    first, *others = [ref.id for ref in refs]
    told: list[int] = []
    for _ in range(3):
        assert len(await claim(store, await hire(store), at_once=1)) == 12
        virtual_time.advance(LEASE + 1)
        swept = await store.sweep(max_lost=3, tell=lambda held, _: told.append(held.fence.task_id))
        assert swept == 12

    assert (await status(store, first)).error_type == "worker_lost"
    for task_id in others:
        found = await status(store, task_id)
        assert (found.state, found.attempt, found.lost) == (State.READY, 0, 0)
        assert await store.attempts(task_id) == []
    assert told == [first] * 3


async def test_claims_that_start_at_once_are_known_to(store: Store) -> None:
    """A claim says of each task whether the store knows that it starts: the first so many do."""
    await store.enqueue([a_task(priority=i) for i in range(5)])
    claims = await claim(store, await hire(store), at_once=2)

    assert [one.started for one in claims] == [True, True, False, False, False]
    assert not any(one.wary for one in claims)


async def test_a_start_that_was_noted_counts(store: Store, virtual_time: VirtualTime) -> None:
    """A claim that was held ahead and is noted as started is lost with its worker."""
    worker = await hire(store)
    await store.enqueue([a_task(), a_task()])
    ahead, other = await claim(store, worker, at_once=0)

    assert await store.note_started(worker, [ahead.fence]) == {ahead.fence}

    virtual_time.advance(LEASE + 1)

    assert await store.sweep(max_lost=3) == 2
    assert (await status(store, ahead.fence.task_id)).lost == 1
    assert (await status(store, other.fence.task_id)).lost == 0


async def test_only_ones_own_claims_can_be_noted(store: Store) -> None:
    """What was settled, or is another worker's, is not among what is answered."""
    task, stranger = await claimed_once(store), await hire(store)

    assert await store.note_started(stranger, [task.fence]) == set()

    old = attrs.evolve(task.fence, epoch=task.fence.epoch - 1)

    assert await store.note_started(task.worker, [old, task.fence]) == {task.fence}

    await settle(store, task.fence, Event.SUCCEED)

    assert await store.note_started(task.worker, [task.fence]) == set()


async def test_who_is_suspected_is_noted_before_it_starts(
    store: Store, virtual_time: VirtualTime
) -> None:
    """A task that kills its worker before anybody knows of its start is lost from then on."""
    (ref,) = await store.enqueue([a_task()])
    kills = 0
    while await state(store, ref.id) is State.READY:
        worker = await hire(store)
        (one,) = await claim(store, worker, at_once=0)
        if one.wary:
            assert await store.note_started(worker, [one.fence])
        kills += 1
        virtual_time.advance(LEASE + 1)

        assert await store.sweep(max_lost=3) == 1

    assert kills == 3 + 1
    assert (await status(store, ref.id)).error_type == "worker_lost"


async def test_suspicion_outlives_being_handed_back(
    store: Store, virtual_time: VirtualTime
) -> None:
    """A worker that gives a suspected task back unstarted has proved nothing."""
    await store.enqueue([a_task()])
    await die_unstarted(store, virtual_time)
    worker = await hire(store)
    (one,) = await claim(store, worker, at_once=0)
    given_back = ends(one, Event.INTERRUPT, outcome=None, attempt=0)
    assert await store.settle([given_back]) == {}
    (two,) = await claim(store, worker, at_once=0)

    assert one.suspect
    assert two.suspect

    assert await store.give_back_all_but(worker, set()) == 1
    assert (await claim_one(store, worker)).suspect


async def test_an_attempt_that_ends_lifts_suspicion(
    store: Store, virtual_time: VirtualTime
) -> None:
    """A task that has run and come back by itself was not at fault."""
    await store.enqueue([a_task()])
    await die_unstarted(store, virtual_time)
    worker = await hire(store)
    one = await claim_one(store, worker)
    await settle(store, one, Event.RETRY, delay=1.0)
    virtual_time.advance(LEASE)
    assert await store.promote() == 1

    assert not (await claim_one(store, worker)).suspect


@pytest.mark.parametrize("keep_for", [None, 0])
async def test_what_was_held_ahead_and_is_to_be_cancelled(
    store: Store, virtual_time: VirtualTime, keep_for: float | None
) -> None:
    """It is cancelled instead of going back, and nothing is logged."""
    (ref,) = await store.enqueue([a_task(keep_for=keep_for)])
    await claim(store, await hire(store), at_once=0)
    await store.cancel(ref.id)
    virtual_time.advance(LEASE + 1)

    assert await store.sweep(max_lost=3) == 1
    assert await state(store, ref.id) is (None if keep_for == 0 else State.CANCELLED)
    assert await store.attempts(ref.id) == []


async def test_each_task_type_has_a_budget_of_its_own(
    store: Store, virtual_time: VirtualTime
) -> None:
    """What the sweeper's code says of a type goes first, then what the dead worker's said."""
    decided: dict[str, Settlement] = {}

    def tell(held: Held, settlement: Settlement) -> None:
        decided[held.task_type] = settlement

    types = ["here", "there", "both", "neither"]
    worker = await hire(store, task_types=types, max_lost={"there": 1, "both": 1})
    await store.enqueue([a_task(task_type=name) for name in types])
    await claim(store, worker, task_types=types)
    virtual_time.advance(LEASE + 1)
    await store.sweep(max_lost=2, max_lost_of={"here": 1, "both": 2}, tell=tell)

    assert {name: each.event for name, each in decided.items()} == {
        "here": Event.FAIL,
        "there": Event.FAIL,
        "both": Event.LOSE,
        "neither": Event.LOSE,
    }


async def test_a_sweep_of_many(store: Store, virtual_time: VirtualTime) -> None:
    """A sweep settles a batch, and says how many: called until there is nothing, it settles all."""
    dead = [await hire(store) for _ in range(3)]
    await store.enqueue([a_task() for _ in range(7000)])
    for worker in dead:
        await claim(store, worker, 2500, at_once=1)
    virtual_time.advance(LEASE + 1)
    alive = await hire(store)
    swept, batches = 0, 0
    while batch := await store.sweep(max_lost=3):
        swept, batches = swept + batch, batches + 1

    assert swept == 7000
    assert [worker.id for worker in await store.workers()] == [alive]
    assert len(await claim(store, alive, 10_000, task_types=[TYPE])) == 7000
