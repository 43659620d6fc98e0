"""A verb that was cancelled had no effect, and leaves the store as good as new."""

from __future__ import annotations

import functools
import random
import time

from collections.abc import Awaitable, Callable

import pytest
import trio

from nursery_queue._core._filters import CancelFilter
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from tests.support.store_steps import (
    a_task,
    add,
    claim,
    claimed_once,
    count,
    ends,
    hire,
    settle,
    state,
)


ROUNDS = 40


async def interrupted(
    verb: Callable[[], Awaitable[object]], rng: random.Random, *, longest: float = 0.006
) -> bool:
    """Run *verb* and cancel it at some moment; say whether it returned all the same."""
    returned = False

    async def run() -> None:
        nonlocal returned
        await verb()
        returned = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        # Real time, in which the database works; turns alone would all be over before.
        some, more = rng.uniform(0, longest / 6), rng.uniform(0, longest)
        until = time.perf_counter() + rng.choice([0, some, more])
        while time.perf_counter() < until and not returned:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return returned


async def rounds(
    verb: Callable[[], Awaitable[object]], done: Callable[[], Awaitable[bool]], seed: int
) -> None:
    """Interrupt *verb* until it has been done, and see each time whether it told the truth."""
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        returned = await interrupted(verb, rng)

        assert await done() is returned

        if returned:
            return
    await verb()

    assert await done()


@pytest.mark.parametrize("seed", range(4))
async def test_enqueue(store: Store, seed: int) -> None:
    """Tasks are stored if and only if the call returned."""
    rng, stored = random.Random(seed), 0
    for _ in range(ROUNDS):
        keyed = rng.random() < 0.3
        batch = [a_task(dedup_key=f"{stored}" if keyed else None), a_task()]
        if await interrupted(functools.partial(store.enqueue, batch), rng):
            stored += 2

        assert await count(store) == stored

    await add(store)


@pytest.mark.parametrize("seed", range(4))
async def test_enqueue_by_copy(store: Store, seed: int) -> None:
    """However many tasks, and whatever has been sent by then: all are stored, or none."""
    rng, stored, cancelled, turn = random.Random(seed), 0, 0, 0
    while turn < ROUNDS or not (stored and cancelled):  # more, if the machine is busy
        turn += 1
        size = rng.choice([1, 30, 500])
        batch = [a_task() for _ in range(size)]
        enqueue = functools.partial(store.enqueue, batch, copy=True)
        if await interrupted(enqueue, rng, longest=0.003 * (turn - 1)):
            stored += size
        else:
            cancelled += 1

        assert await count(store) == stored

    await store.enqueue([a_task()], copy=True)


@pytest.mark.parametrize("seed", range(4))
async def test_cancel_all(store: Store, seed: int) -> None:
    """A page of a walk is done as a whole or not at all."""
    rng, size = random.Random(seed), 300
    which, done = CancelFilter(), False
    refs = await store.enqueue([a_task(run_after=60 * (i % 2)) for i in range(size)])
    cancel = functools.partial(store.cancel_some, which, after=0, upto=refs[-1].id, dry_run=False)
    for _ in range(ROUNDS):
        done = done or await interrupted(cancel, rng, longest=0.03)

        assert await count(store, State.CANCELLED) == (size if done else 0)

    assert await cancel() == (refs[-1].id, 0 if done else size)


@pytest.mark.parametrize("seed", range(4))
async def test_transaction(store: Store, seed: int) -> None:
    """A block is committed if and only if it was left without Cancelled."""
    rng, stored = random.Random(seed), 0

    async def block() -> None:
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            async with tx.savepoint():
                await tx.enqueue([a_task()])

    for _ in range(ROUNDS):
        stored += 2 * await interrupted(block, rng)

        assert await count(store) == stored

    await block()


@pytest.mark.parametrize("seed", range(4))
async def test_settle(store: Store, seed: int) -> None:
    """A claim is settled if and only if the call returned."""
    task = await claimed_once(store)

    async def done() -> bool:
        return await state(store, task.id) is State.SUCCEEDED

    await rounds(lambda: settle(store, task.fence, Event.SUCCEED), done, seed)


@pytest.mark.parametrize("seed", range(4))
async def test_cancel_and_retry(store: Store, seed: int) -> None:
    """A task is cancelled, and made ready again, if and only if the call returned."""
    task_id = await add(store)

    async def is_cancelled() -> bool:
        return await state(store, task_id) is State.CANCELLED

    async def is_ready() -> bool:
        return await state(store, task_id) is State.READY

    await rounds(lambda: store.cancel(task_id), is_cancelled, seed)
    await rounds(lambda: store.retry(task_id), is_ready, seed)


@pytest.mark.parametrize("seed", range(4))
async def test_claim(store: Store, seed: int) -> None:
    """What a cancelled claim may have taken can be given back: nothing is lost or doubled."""
    refs = await store.enqueue([a_task() for _ in range(50)])
    worker, rng = await hire(store), random.Random(seed)
    for _ in range(ROUNDS):
        await interrupted(lambda: claim(store, worker, 10), rng)
        running = await count(store, State.RUNNING)

        assert await store.give_back_all_but(worker, set()) == running

    claims = await claim(store, worker)

    assert [one.fence.task_id for one in claims] == [ref.id for ref in refs]
    assert {one.attempt for one in claims} == {1}
    assert await store.settle([ends(one, Event.SUCCEED) for one in claims]) == {}


@pytest.mark.parametrize("seed", range(4))
async def test_worker(store: Store, seed: int) -> None:
    """Registering, renewing, sweeping and the rest can be cancelled at any moment too."""
    rng = random.Random(seed)
    worker = await hire(store)
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: hire(store),
        lambda: store.heartbeat(worker, draining=False),
        lambda: store.give_back_all_but(worker, set()),
        lambda: store.sweep(max_lost=3),
        store.promote,
        store.prune,
        store.stats,
    ]
    for _ in range(ROUNDS):
        await interrupted(rng.choice(verbs), rng)

    assert (await store.heartbeat(worker, draining=False)).registered

    await claimed_once(store)
