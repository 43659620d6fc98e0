"""Workers, their leases, and what is left behind."""

from __future__ import annotations

import datetime as dt
import uuid

import attrs
import pytest

from nursery_queue._core._heartbeat import Late, Seen
from nursery_queue._core._model import Outcome, Refusal
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    LEASE,
    Known,
    a_task,
    add,
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


async def lose(store: Store, virtual_time: VirtualTime, task: Known, **changes: int) -> None:
    """Let the task's worker die of silence, and sweep."""
    virtual_time.advance(LEASE + 1)

    assert await store.sweep(max_lost=changes.get("max_lost", 3)) == 1


async def test_a_heartbeat_needs_a_row(store: Store) -> None:
    """A worker that is not registered is told so, and stays unregistered."""
    stranger = uuid.uuid4()

    assert not (await store.heartbeat(stranger, draining=False)).registered
    assert not (await store.heartbeat(stranger, draining=False)).registered
    assert (await store.stats()).workers == []


async def test_a_heartbeat_renews_the_lease(store: Store, virtual_time: VirtualTime) -> None:
    """A worker that is heard of in time keeps its tasks."""
    task = await claimed_once(store)
    for _ in range(5):
        virtual_time.advance(LEASE - 1)

        assert (await store.heartbeat(task.worker, draining=False)).registered
        assert await store.sweep(max_lost=3) == 0

    assert await state(store, task.id) is State.RUNNING


async def test_the_lease_lasts_to_its_last_moment(store: Store, virtual_time: VirtualTime) -> None:
    """Nothing is taken before the lease is over, and everything after."""
    task = await claimed_once(store)
    virtual_time.advance(LEASE)

    assert await store.sweep(max_lost=3) == 0

    virtual_time.advance(0.001)

    assert await store.sweep(max_lost=3) == 1
    assert await state(store, task.id) is State.READY


async def test_a_dead_worker_loses_its_tasks(store: Store, virtual_time: VirtualTime) -> None:
    """They are ready again, the attempt refunded, the loss counted and logged."""
    task = await claimed_once(store, max_attempts=1)
    await lose(store, virtual_time, task)
    found = await status(store, task.id)
    (attempt,) = await store.attempts(task.id)

    assert (found.state, found.attempt, found.lost) == (State.READY, 0, 1)
    assert (attempt.outcome, attempt.error_type) == (Outcome.LOST, "worker_lost")
    assert str(task.worker) in str(attempt.error_message)
    assert await store.settle([ends(task.fence, Event.SUCCEED)]) == {task.fence: Refusal.STALE}
    assert await store.sweep(max_lost=3) == 0


async def test_a_dead_worker_is_out(store: Store, virtual_time: VirtualTime) -> None:
    """Once swept it is not registered, and gets no more tasks until it registers anew."""
    task = await claimed_once(store)
    await lose(store, virtual_time, task)

    assert not (await store.heartbeat(task.worker, draining=False)).registered
    assert await claim(store, task.worker) == []
    assert len(await claim(store, await hire(store))) == 1


async def test_late_but_not_swept(store: Store, virtual_time: VirtualTime) -> None:
    """A worker that is late keeps its tasks if nobody has noticed."""
    task = await claimed_once(store)
    virtual_time.advance(LEASE * 2)

    assert (await store.heartbeat(task.worker, draining=False)).registered
    assert await store.sweep(max_lost=3) == 0

    await settle(store, task.fence, Event.SUCCEED)


async def test_losses_have_a_budget(store: Store, virtual_time: VirtualTime) -> None:
    """The last loss allowed fails the task, with the reason."""
    task = await claimed_once(store)
    await lose(store, virtual_time, task, max_lost=2)
    second = await claim_one(store, await hire(store))

    assert (second.attempt, second.lost) == (1, 1)

    await lose(store, virtual_time, task, max_lost=2)
    found = await status(store, task.id)

    assert (found.state, found.lost, found.error_type) == (State.FAILED, 2, "worker_lost")
    assert [attempt.outcome for attempt in await store.attempts(task.id)] == [Outcome.LOST] * 2


async def test_one_dies_and_others_live(store: Store, virtual_time: VirtualTime) -> None:
    """Only the tasks of the dead are taken, all at once."""
    dead = await hire(store)
    await store.enqueue([a_task() for _ in range(5)])
    await claim(store, dead)
    alive = await claimed_once(store)
    patient = await hire(store, lease=1000)
    await add(store)
    patients = await claim_one(store, patient)
    virtual_time.advance(LEASE + 1)
    await store.heartbeat(alive.worker, draining=False)
    beat = await store.heartbeat(alive.worker, draining=False)

    assert [other.id for other in beat.late] == [dead]
    assert await store.sweep(max_lost=3) == 5
    assert await count(store, State.READY) == 5
    assert await state(store, alive.id) is State.RUNNING
    assert await state(store, patients.fence.task_id) is State.RUNNING
    assert (await store.heartbeat(alive.worker, draining=False)).late == []


async def test_who_leaves_may_be_swept_at_once(store: Store) -> None:
    """What a worker still holds when it deregisters is lost, without waiting for its lease."""
    task = await claimed_once(store)
    await store.deregister(task.worker)
    await store.deregister(task.worker)

    assert await state(store, task.id) is State.RUNNING
    assert await store.sweep(max_lost=3) == 1
    assert (await status(store, task.id)).lost == 1


@pytest.mark.parametrize("running", [True, False])
async def test_a_lost_task_to_be_cancelled(
    store: Store, virtual_time: VirtualTime, running: bool
) -> None:
    """A task somebody wanted cancelled does not come back from a dead worker."""
    task = await claimed_once(store)
    await store.cancel(task.id, running=running)
    await lose(store, virtual_time, task)
    (attempt,) = await store.attempts(task.id)

    assert await state(store, task.id) is State.CANCELLED
    assert attempt.outcome is Outcome.LOST


async def test_a_lost_task_keeps_its_own_keep_for(store: Store, virtual_time: VirtualTime) -> None:
    """A task that fails of losses is kept as long as its enqueue asked for."""
    gone = await claimed_once(store, keep_for=0)
    await lose(store, virtual_time, gone, max_lost=1)
    kept = await claimed_once(store, keep_for=5)
    await lose(store, virtual_time, kept, max_lost=1)

    assert await state(store, gone.id) is None
    assert await state(store, kept.id) is State.FAILED

    virtual_time.advance(5)

    assert await store.prune() == 1


async def test_nothing_to_sweep(store: Store, virtual_time: VirtualTime) -> None:
    """Tasks that nobody holds are none of the sweep's business."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.SUCCEED)
    await add(store)
    await add(store, run_after=60)
    virtual_time.advance(LEASE + 1)

    assert await store.sweep(max_lost=1) == 0
    assert await count(store, State.READY) == 1
    assert await count(store, State.SCHEDULED) == 1
    assert (await store.stats()).workers == []


async def test_giving_back_what_the_worker_does_not_know_of(store: Store) -> None:
    """All but the named claims are released: attempt refunded, nothing logged."""
    worker, other = await hire(store), await claimed_once(store)
    await store.enqueue([a_task() for _ in range(3)])
    claims = await claim(store, worker)
    kept = {claims[1].fence}

    assert await store.give_back_all_but(worker, kept) == 2
    assert await store.give_back_all_but(worker, kept) == 0
    for one in claims:
        found = await status(store, one.fence.task_id)

        assert (found.state, found.attempt) == (
            (State.RUNNING, 1) if one.fence in kept else (State.READY, 0)
        )
    assert await store.attempts(claims[0].fence.task_id) == []
    assert await state(store, other.id) is State.RUNNING
    assert await store.settle([ends(claims[0], Event.SUCCEED)]) == {claims[0].fence: Refusal.STALE}


async def test_an_old_claim_does_not_keep_the_new_one(store: Store) -> None:
    """What is kept is named by its fence: an earlier claim of the same task does not count."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.INTERRUPT)
    await claim_one(store, task.worker)

    assert await store.give_back_all_but(task.worker, {task.fence}) == 1
    assert await state(store, task.id) is State.READY


@pytest.mark.parametrize("keep_for", [None, 0])
async def test_giving_back_what_is_to_be_cancelled(store: Store, keep_for: float | None) -> None:
    """A task somebody wanted cancelled is cancelled instead, and kept as long as it asked."""
    task = await claimed_once(store, keep_for=keep_for)
    await store.cancel(task.id)

    assert await store.give_back_all_but(task.worker, set()) == 1
    assert await state(store, task.id) is (None if keep_for == 0 else State.CANCELLED)


# -- who is late, and who has been seen ----------------------------------------------------------


async def only_late(store: Store, observer: uuid.UUID) -> Late:
    """Send a heartbeat; return the one worker that is late."""
    (late,) = (await store.heartbeat(observer, draining=False)).late
    return late


async def test_who_is_late(store: Store, virtual_time: VirtualTime) -> None:
    """A heartbeat names those that left out two of theirs, and when they are dead."""
    me = await hire(store, lease=1000)
    other = await hire(store, lease=30, heartbeat=3)
    virtual_time.advance(6)
    assert (await store.heartbeat(me, draining=False)).late == []

    virtual_time.advance(0.1)
    late = await only_late(store, me)
    assert (late.id, late.dead_after) == (other, 30)

    virtual_time.advance(24)
    overdue = await only_late(store, me)
    assert overdue == attrs.evolve(late, dead_after=4)

    assert (await store.heartbeat(other, draining=False)).registered
    assert (await store.heartbeat(me, draining=False)).late == []


async def test_who_has_a_heartbeat_from_the_future_is_late(
    store: Store, virtual_time: VirtualTime
) -> None:
    """It is dead after its lease, and the next heartbeat goes by the clock as it is."""
    me, other = await hire(store, lease=1000), await hire(store, lease=30, heartbeat=3)
    virtual_time.start -= dt.timedelta(seconds=6)
    assert (await store.heartbeat(me, draining=False)).late == []

    virtual_time.start -= dt.timedelta(hours=1)
    late = await only_late(store, me)
    assert (late.id, late.dead_after) == (other, 30)

    assert (await store.heartbeat(other, draining=False)).registered
    assert (await store.heartbeat(me, draining=False)).late == []


async def test_a_lease_of_a_moment(store: Store, virtual_time: VirtualTime) -> None:
    """Nobody has to be seen for longer than his lease."""
    me = await hire(store, lease=1000)
    await hire(store, lease=1, heartbeat=0.3)
    virtual_time.advance(2)

    assert (await only_late(store, me)).dead_after == 1


@pytest.mark.parametrize(
    ("passed", "seconds", "dead"),
    [(30, 29.9, False), (30.1, 3.9, False), (30.1, 4, True), (29, 30, True), (-3600, 30, True)],
)
async def test_dead_is_who_has_been_seen_for_long_enough(
    store: Store, virtual_time: VirtualTime, passed: float, seconds: float, dead: bool
) -> None:
    """For a heartbeat and a second if the lease is over by the store's clock, else for a lease."""
    task_id, worker = await add(store), await hire(store, lease=30, heartbeat=3)
    task = Known(task_id, (await claim_one(store, worker)).fence, worker)
    me = await hire(store, lease=10_000)
    virtual_time.start += dt.timedelta(seconds=100)
    late = await only_late(store, me)
    virtual_time.start += dt.timedelta(seconds=passed - 100)
    seen = [Seen(uuid.uuid4(), late.heartbeat_at, 999), Seen(late.id, late.heartbeat_at, seconds)]

    assert await store.sweep(max_lost=3, seen=seen) == dead
    assert await state(store, task.id) is (State.READY if dead else State.RUNNING)
    assert (await store.heartbeat(task.worker, draining=False)).registered == (not dead)


async def test_who_has_sent_a_heartbeat_since_is_not_dead(
    store: Store, virtual_time: VirtualTime
) -> None:
    """Neither is anybody who has not been seen; what nobody holds is settled all the same."""
    one, other, gone = [await claimed_once(store) for _ in range(3)]
    me = await hire(store, lease=10_000)
    virtual_time.advance(LEASE + 1)
    late = (await store.heartbeat(me, draining=False)).late
    seen = [Seen(each.id, each.heartbeat_at, 999) for each in late if each.id == one.worker]
    await store.heartbeat(one.worker, draining=False)
    virtual_time.advance(LEASE + 1)
    await store.deregister(gone.worker)

    assert len(seen) == 1
    assert await store.sweep(max_lost=3, seen=seen) == 1
    assert await state(store, gone.id) is State.READY
    assert await store.sweep(max_lost=3, seen=[]) == 0
    for living in (one, other):
        assert await state(store, living.id) is State.RUNNING
    assert await store.sweep(max_lost=3) == 2
