"""Debounced enqueues, claims, cancels and promotions of one task at the same time."""

from __future__ import annotations

import contextlib
import random

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import trio

from nursery_queue._core._debounce import Debounce
from nursery_queue._core._errors import TransientError
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import NewTask, TaskRef
from nursery_queue._core._states import Event, State
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._store import StoreTransaction
from tests.pg.queries import Session, rows
from tests.support.store_steps import (
    a_task,
    add,
    claim,
    claim_one,
    count,
    hire,
    settle,
    state,
    status,
)
from tests.support.waits import until_blocked


SOON = Debounce(0.001)
LATE = Debounce(1000)
TAKE = """
    with taken as (delete from nursery_queue.ready returning *)
    insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at)
    select task_id, (select id from nursery_queue.worker), 1, epoch + 1, 0, now() from taken
"""
PROMOTE = """
    with due as (delete from nursery_queue.scheduled returning *)
    insert into nursery_queue.ready (task_id, queue, priority, task_type)
    select id, queue, priority, task_type from nursery_queue.task join due on task_id = id
"""
CANCEL = "select nursery_queue.cancel(id) from nursery_queue.task"


class Undone(Exception):
    """Undoes a transaction."""


def call(number: int, **changes: Any) -> NewTask:
    usual: dict[str, Any] = {"params": f'{{"n": {number}}}', "dedup_key": "k", "debounce": LATE}
    return a_task(**usual | changes)


async def enqueue(store: PostgresStore, task: NewTask, found: list[TaskRef]) -> None:
    found += await store.enqueue([task])


async def params(store: PostgresStore) -> dict[int, Any]:
    listed = await store.list_tasks(TaskFilter(payloads=True))
    return {each.id: each.params["n"] for each in listed}


@pytest.mark.parametrize("commits", [True, False])
async def test_a_claim_under_way(
    store: PostgresStore, session: Session, migrated: str, commits: bool
) -> None:
    """A call waits for it: the task has started, so a new one is made; or it is replaced."""
    await hire(store)
    first = await add(store, dedup_key="k", params='{"n": 1}')
    session.execute(TAKE)
    found: list[TaskRef] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue, store, call(2), found)
        await until_blocked(migrated)
        (session.commit if commits else session.rollback)()
    (ref,) = found

    assert ref.created is commits
    assert (ref.id == first) is not commits
    assert await params(store) == ({first: 1, ref.id: 2} if commits else {first: 2})
    assert await store.enqueue([call(3)]) == [TaskRef(ref.id, created=False)]


@pytest.mark.parametrize("commits", [True, False])
async def test_a_promotion_under_way(
    store: PostgresStore, session: Session, migrated: str, commits: bool
) -> None:
    """A call waits for it, and replaces the task where it finds it then."""
    (first,) = await store.enqueue([call(1)])
    session.execute(PROMOTE)
    found: list[TaskRef] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue, store, call(2), found)
        await until_blocked(migrated)
        (session.commit if commits else session.rollback)()

    assert found == [TaskRef(first.id, created=False)]
    assert await params(store) == {first.id: 2}
    assert await state(store, first.id) is State.SCHEDULED
    assert rows(session, "scheduled") + rows(session, "ready") == 1


@pytest.mark.parametrize("commits", [True, False])
async def test_a_cancel_under_way(
    store: PostgresStore, session: Session, migrated: str, commits: bool
) -> None:
    """A call waits for it, and makes a task of its own if the other one is cancelled."""
    (first,) = await store.enqueue([call(1)])
    session.execute(CANCEL)
    found: list[TaskRef] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue, store, call(2), found)
        await until_blocked(migrated)
        (session.commit if commits else session.rollback)()

    assert found[0].created is commits
    assert await state(store, first.id) is (State.CANCELLED if commits else State.SCHEDULED)
    assert await state(store, found[0].id) is State.SCHEDULED


@pytest.mark.parametrize("was_ready", [True, False])
async def test_a_cancel_meanwhile(store: PostgresStore, migrated: str, was_ready: bool) -> None:
    """A cancel waits for a transaction that replaces the task, and then cancels what it made."""
    (first,) = await store.enqueue([call(1, debounce=None if was_ready else LATE)])
    answers: list[bool] = []

    async def cancel() -> None:
        answers.append(await store.cancel(first.id))

    async with trio.open_nursery() as nursery, store.transaction() as tx:
        await tx.enqueue([call(2)])
        nursery.start_soon(cancel)
        await until_blocked(migrated)

    assert answers == [True]
    assert await state(store, first.id) is State.CANCELLED
    assert (await store.enqueue([call(3)]))[0].created


@pytest.mark.parametrize("was_ready", [True, False])
async def test_no_claim_meanwhile(store: PostgresStore, was_ready: bool) -> None:
    """A task that is being replaced does not start, nor is it waited for."""
    worker = await hire(store)
    (first,) = await store.enqueue([call(1, debounce=None if was_ready else SOON)])
    with trio.fail_after(20):
        async with store.transaction() as tx:
            await tx.enqueue([call(2, debounce=SOON)])

            assert await store.promote() == 0
            assert await claim(store, worker) == []

        await trio.sleep(0.01)
        await store.promote()
        one = await claim_one(store, worker)

    assert (one.fence.task_id, one.params) == (first.id, '{"n": 2}')


async def moved(store: PostgresStore, tx: StoreTransaction) -> TaskRef:
    """Take the key of a running task over in a transaction."""
    (ref,) = await tx.enqueue([call(2)])
    assert ref.created
    return ref


@pytest.mark.parametrize("keep_for", [60.0, 0.0])
@pytest.mark.parametrize("commits", [True, False])
async def test_a_settlement_meanwhile(store: PostgresStore, commits: bool, keep_for: float) -> None:
    """A worker does not wait for a transaction that takes the key of the task it ends."""
    worker = await hire(store)
    first = await add(store, dedup_key="k")
    one = await claim_one(store, worker)
    refs: list[TaskRef] = []
    with trio.fail_after(20), contextlib.suppress(Undone):
        async with store.transaction() as tx:
            refs.append(await moved(store, tx))
            await settle(store, one, Event.SUCCEED, keep_for=keep_for)
            if not commits:
                raise Undone

    assert await state(store, first) is (State.SUCCEEDED if keep_for else None)

    (again,) = await store.enqueue([call(3)])

    assert again.created is not commits
    assert (again.id == refs[0].id) is commits


async def test_a_plain_call_meanwhile(store: PostgresStore) -> None:
    """While the key of a running task is taken over, a plain call is answered at once."""
    worker = await hire(store)
    first = await add(store, dedup_key="k")
    await claim_one(store, worker)
    with trio.fail_after(20):
        async with store.transaction() as tx:
            await moved(store, tx)

            assert await store.enqueue([a_task(dedup_key="k")]) == [TaskRef(first, created=False)]


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("what", ["new", "waiting", "ready", "running"])
async def test_two_calls_at_once(
    store: PostgresStore, migrated: str, what: str, commits: bool
) -> None:
    """The second waits for the first; there is one task with the key, as the last call said."""
    worker = await hire(store)
    first = None
    if what != "new":
        (ref,) = await store.enqueue([call(1, debounce=LATE if what == "waiting" else None)])
        first = ref.id
    if what == "running":
        await claim_one(store, worker)
        first = None
    found: list[TaskRef] = []
    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        undone = contextlib.nullcontext() if commits else pytest.raises(Undone)
        stack.enter_context(undone)
        tx = await stack.enter_async_context(store.transaction())
        (one,) = await tx.enqueue([call(2)])
        nursery.start_soon(enqueue, store, call(3), found)
        await until_blocked(migrated)
        if not commits:
            raise Undone
    (two,) = found

    assert one.created is (first is None)
    assert two.created is (first is None and not commits)
    assert (one.id == two.id) is (first is not None or commits)
    assert (await params(store))[two.id] == 3
    assert await count(store, State.SCHEDULED) == 1


async def test_opposite_orders(store: PostgresStore, session: Session, migrated: str) -> None:
    """Two lists with the same keys in opposite orders do not wait for each other."""
    await store.enqueue([call(0, dedup_key=key) for key in "abc"])
    session.execute("select from nursery_queue.dedup where dedup_key = 'b' for update")
    keys = ["z", "c", "b", "a", "x"]
    async with trio.open_nursery() as nursery:
        for order in (keys, keys[::-1]):
            calls = [call(1, dedup_key=key) for key in order]
            nursery.start_soon(store.enqueue, calls)
        await until_blocked(migrated, 2)
        session.rollback()

    assert await count(store) == rows(session, "dedup") == 5


async def test_crossed_lists(store: PostgresStore, session: Session, migrated: str) -> None:
    """Two lists that hold each other's keys, one as it debounces, both go through in the end."""
    await store.enqueue([a_task(dedup_key=key, dedup_for=1000, keep_for=0) for key in "ab"])
    session.execute("select nursery_queue.cancel(id) from nursery_queue.task")
    session.execute("update nursery_queue.dedup set until = now() - interval '1 s'")
    session.commit()
    session.execute("select from nursery_queue.dedup where dedup_key = 'a' for update")
    found: list[list[TaskRef]] = []

    async def work(*tasks: NewTask) -> None:
        found.append(await store.enqueue(tasks))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, a_task(dedup_key="a"), a_task(dedup_key="b"))
        await until_blocked(migrated)
        nursery.start_soon(work, call(1, dedup_key="b"), a_task(dedup_key="a"))
        await until_blocked(migrated, 2)
        session.rollback()

    assert await count(store) == rows(session, "dedup") == 2
    assert sorted(ref.created for refs in found for ref in refs) == [False, False, True, True]


@pytest.mark.parametrize("keep_for", [60.0, 0.0])
async def test_what_a_rollback_leaves(
    store: PostgresStore, session: Session, keep_for: float
) -> None:
    """A key that was held while its task ended does not stay for ever."""
    worker = await hire(store)
    await add(store, dedup_key="k")
    one = await claim_one(store, worker)
    session.execute("select from nursery_queue.dedup for update")
    await settle(store, one, Event.SUCCEED, keep_for=keep_for)
    session.rollback()
    assert rows(session, "dedup") == 1

    session.execute("update nursery_queue.dedup set prune_at = prune_at - interval '1 h'")
    session.commit()
    await store.prune()

    assert rows(session, "dedup") == 0


async def test_a_snapshot_that_does_not_see(store: PostgresStore) -> None:
    """In REPEATABLE READ a task replaced since makes the call transient, never wrong."""
    await store.enqueue([call(1)])
    with pytest.raises((TransientError, psycopg.errors.SerializationFailure)):
        async with store.transaction(isolation="repeatable read") as tx:
            await tx.execute("select from nursery_queue.task")
            await store.enqueue([call(2)])
            await tx.enqueue([call(3)])

    assert list((await params(store)).values()) == [2]


async def test_many_at_once(store: PostgresStore) -> None:
    """Whatever happens at the same time, the last call of each key runs, and none runs twice."""
    worker = await hire(store)
    rng = random.Random(3)
    keys = [f"k{number}" for number in range(5)]
    numbers = iter(range(10_000))
    ran: dict[str, list[int]] = {key: [] for key in keys}
    last: dict[str, int] = {}
    key_of: dict[int, str] = {}
    idle = False

    async def calls(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(40):
            asked = [(order.choice(keys), next(numbers)) for _ in range(order.randrange(1, 4))]
            wait = Debounce(order.choice([0.001, 0.005, 0.02]))
            tasks = [call(n, dedup_key=key, debounce=wait) for key, n in asked]
            key_of.update((n, key) for key, n in asked)
            await store.enqueue(tasks)

    async def work() -> None:
        while not idle or await count(store, State.SCHEDULED) or await count(store, State.READY):
            await store.promote()
            for one in await claim(store, worker, 3):
                n = int(one.params[6:-1])
                ran[key_of[n]].append(n)
                await settle(store, one, Event.SUCCEED, keep_for=0)

    def number() -> Callable[[], int]:
        return lambda: rng.randrange(10**6)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async with trio.open_nursery() as callers:
            for _ in range(6):
                callers.start_soon(calls, number()())
        for key in keys:
            final = next(numbers)
            last[key], key_of[final] = final, key
            await store.enqueue([call(final, dedup_key=key, debounce=SOON)])
        idle = True

    assert {key: numbers[-1] for key, numbers in ran.items()} == last
    assert all(len(set(numbers)) == len(numbers) for numbers in ran.values())


@pytest.mark.parametrize("held", [True, False])
async def test_an_expired_key_wanted_twice(
    store: PostgresStore, session: Session, migrated: str, held: bool
) -> None:
    """Of two who find a key free that a task has left behind, one gets it."""
    await store.enqueue([a_task(dedup_key="k", dedup_for=1000, keep_for=0)])
    session.execute("update nursery_queue.task set keep_for = 0")
    session.execute("select nursery_queue.cancel(id) from nursery_queue.task")
    session.execute("update nursery_queue.dedup set until = now() - interval '1 s'")
    session.commit()
    if held:
        session.execute("select nursery_queue.enqueue('work', dedup_key => 'k')")
    found: list[TaskRef] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue, store, a_task(dedup_key="k"), found)
        if held:
            await until_blocked(migrated)
            session.commit()
        nursery.start_soon(enqueue, store, a_task(dedup_key="k"), found)

    assert [ref.created for ref in found].count(True) == (not held)
    assert len({ref.id for ref in found}) == await count(store) == rows(session, "dedup") == 1
    assert (await status(store, found[0].id)).state is State.READY
